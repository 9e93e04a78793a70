"""Tasks through lm-evaluation-harness (the package lm_eval)."""

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
        wanted: names of the harness's tasks, task YAML files, .jsonl files of items (see
            `of_items`), or folders of such files.
        limit: largest number of questions in a task; None: all.
        fewshot: solved examples in each prompt.
        batch: sequences that the model scores at a time.

    Raises:
        PPFError: a task or its data cannot be found.
        ModuleNotFoundError: lm_eval is not installed.
    """

    def __init__(
        self, wanted: Sequence[str], *, limit: int | None, batch: int, fewshot: int = 0
    ) -> None:
        self.limit, self.batch, self.fewshot = limit, batch, fewshot
        with _without_script_folder():
            self._tasks, self._manager = _load(wanted)

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Scores:
        """Metrics of the model on each task.

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
                num_fewshot=self.fewshot,
                limit=self.limit,
                log_samples=False,
                task_manager=self._manager,  # a new one would read thousands of files
            )
        assert found is not None
        return {task: _numbers(values) for task, values in found["results"].items()}


def _load(wanted: Sequence[str]) -> tuple[list[Any], Any]:
    """The tasks, and the manager that knows them."""
    from lm_eval.tasks import TaskManager

    folders = [name for name in wanted if Path(name).is_dir()]
    names: list[Any] = [name for name in wanted if name not in folders]
    try:
        for folder in folders:
            own = TaskManager(include_path=[folder], include_defaults=False).all_subtasks
            if not (found := own or [*map(str, sorted(Path(folder).glob("*.jsonl")))]):
                raise ValueError(
                    f"the folder {folder} has neither task YAML files nor .jsonl files"
                )
            names += found
        # The harness's own tasks are thousands of files.
        local = all(Path(name).exists() or name.endswith(".jsonl") for name in wanted)
        manager = TaskManager(include_path=folders, include_defaults=not local)
        given = [of_items(Path(name)) if name.endswith(".jsonl") else name for name in names]
        return [*manager.load(given)["tasks"].values()], manager
    except Exception as error:  # the harness, `datasets` and task files can raise any error
        raise PPFError(
            f"tasks={list(wanted)} cannot be loaded ({reason(error)}): give names of"
            " lm-evaluation-harness tasks, task YAML files, .jsonl files of {question, options,"
            " answer}, or folders of such files."
        ) from error


def of_items(file: Path) -> dict[str, Any]:
    """The harness's config of a multiple-choice task.

    Args:
        file: a .jsonl file. Each row has `question`, `options` (a list of texts), `answer` (the
            right option, or its number from 0), and perhaps `passage`. The answers are scored by
            their likelihood after the question, without letters.
    """
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ]
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    return {
        "task": file.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "fewshot_split": "test",  # the harness leaves out the item itself
        "output_type": "multiple_choice",
        "doc_to_text": "{% if passage is defined and passage %}{{passage}}\n{% endif %}"
        "Question: {{question}}\nAnswer:",
        "doc_to_choice": "options",
        "doc_to_target": "{{answer if answer is number else options.index(answer)}}",
        "metric_list": metrics,
    }


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
