"""Zero-shot tasks through lm-evaluation-harness (the package lm_eval)."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError, reason
from ppf.text.windows import leading_tokens

Scores = Mapping[str, Mapping[str, float]]
"""Task → metric → value; `acc_stderr` is the standard error of `acc`."""


class Tasks:
    """Tasks that are loaded once and run on one model after another.

    Args:
        wanted: names of the harness's tasks, task YAML files, or folders of such files.
        limit: largest number of questions in a task; None: all.
        batch: sequences that the model scores at a time.

    Raises:
        PPFError: lm_eval is not installed, or a task or its data cannot be found.
    """

    def __init__(self, wanted: Sequence[str], *, limit: int | None, batch: int) -> None:
        self.limit, self.batch = limit, batch
        with _without_script_folder():
            self._tasks, self._manager = _load(wanted)

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
        """Metrics of the model on each task, without examples in the prompt (zero-shot).

        Prompts begin with BOS if the tokenizer adds it to a text.
        """
        with _without_script_folder():
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            bos = bool(leading_tokens(tokenizer))
            lm = HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=self.batch, add_bos_token=bos
            )
            found = simple_evaluate(
                lm,
                tasks=self._tasks,
                num_fewshot=0,
                limit=self.limit,
                log_samples=False,
                task_manager=self._manager,  # a new one would read thousands of files
            )
        assert found is not None
        return {task: _numbers(values) for task, values in found["results"].items()}


def _load(wanted: Sequence[str]) -> tuple[list[Any], Any]:
    """The tasks, and the manager that knows them."""
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise PPFError(
            f"tasks= needs the package {error.name}: run `pip install 'ppf-llm[tasks]'`."
        ) from error
    folders = [name for name in wanted if Path(name).is_dir()]
    names = [name for name in wanted if name not in folders]
    try:
        for folder in folders:
            own = TaskManager(include_path=[folder], include_defaults=False).all_subtasks
            if not own:
                raise ValueError(f"the folder {folder} has no task YAML files")
            names += own
        # The harness's own tasks are thousands of files.
        local = all(name in folders or Path(name).is_file() for name in wanted)
        manager = TaskManager(include_path=folders, include_defaults=not local)
        return [*manager.load(names)["tasks"].values()], manager
    except Exception as error:  # the harness, `datasets` and task files can raise any error
        raise PPFError(
            f"tasks={list(wanted)} cannot be loaded ({reason(error)}): give names of"
            " lm-evaluation-harness tasks, task YAML files, or folders of such files."
        ) from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numeric results of a task. The filter ",none" at the end of their names is removed."""
    numbers = {key: value for key, value in values.items() if isinstance(value, float)}
    return {key.removesuffix(",none"): value for key, value in numbers.items()}


@contextmanager
def _without_script_folder() -> Iterator[None]:
    """Hides the script `evaluate.py`, because lm_eval imports the package `evaluate`."""
    before = sys.path.copy()
    sys.path[:] = [folder for folder in before if not Path(folder, "evaluate.py").is_file()]
    try:
        yield
    finally:
        sys.path[:] = before
