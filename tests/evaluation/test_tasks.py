from pathlib import Path
from typing import Any

import pytest

from ppf.errors import PPFError
from ppf.evaluation.tasks import Tasks
from ppf.llm.sources import byte_tokenizer
from tests.checkpoints import bos_tokenizer
from tests.evaluation.conftest import QUESTIONS
from tests.tiny import TinySetup

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_local_task_runs_dense_and_pruned(tiny: TinySetup, task_file: Path) -> None:
    tasks = Tasks([str(task_file)], limit=None, batch=4)
    pruner, found = tiny.pruner(), []
    for kept in (tiny.space.dense.tolist(), [1] * len(tiny.space)):
        with pruner.at(kept) as model:
            found.append(tasks.scores(model, tiny.lm.tokenizer)["letters"])
    for scores in found:
        assert 0 <= scores["acc"] <= 1 and scores["acc"] * len(QUESTIONS) % 1 == 0
        assert "acc_stderr" in scores
    limited = Tasks([str(task_file.parent)], limit=2, batch=4)  # a folder of tasks
    assert limited.scores(tiny.lm.model, tiny.lm.tokenizer)["letters"]["acc"] in (0, 0.5, 1)


def test_prompts_begin_with_bos_if_the_tokenizer_adds_it(tiny: TinySetup, task_file: Path) -> None:
    prompts: list[int] = []

    def note(module: Any, inputs: Any, named: dict[str, Any]) -> None:
        prompts.extend((inputs[0] if inputs else named["input_ids"])[:, 0].tolist())

    tiny.lm.model.register_forward_pre_hook(note, with_kwargs=True)
    tasks, (letter,) = Tasks([str(task_file)], limit=1, batch=1), byte_tokenizer()("W").input_ids
    for tokenizer, first in ((byte_tokenizer(), letter), (bos_tokenizer(), 0)):
        prompts.clear()
        tasks.scores(tiny.lm.model, tokenizer)
        assert set(prompts) == {first}


def test_a_folder_without_tasks_is_named_before_the_work_starts(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match="cannot be loaded .* has no task YAML files"):
        Tasks([str(tmp_path)], limit=None, batch=1)
