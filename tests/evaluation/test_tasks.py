import sys
from pathlib import Path

import pytest

from ppf.errors import PPFError
from ppf.evaluation.tasks import Tasks, _without_script_folder
from tests.evaluation.conftest import QUESTIONS
from tests.tiny import TinySetup

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("folder", [False, True])
def test_a_local_task_runs_dense_and_pruned(tiny: TinySetup, task_file: Path, folder: bool) -> None:
    tasks = Tasks([str(task_file.parent if folder else task_file)], limit=None, batch=4)
    pruner, found = tiny.pruner(), []
    for kept in (tiny.space.dense.tolist(), [1] * len(tiny.space)):
        with pruner.at(kept) as model:
            found.append(tasks.scores(model, tiny.lm.tokenizer)["letters"])
    for scores in found:
        assert 0 <= scores["acc"] <= 1 and scores["acc"] * len(QUESTIONS) % 1 == 0
        assert "acc_stderr" in scores
    limited = Tasks([str(task_file.parent)], limit=2, batch=4)  # a folder of tasks
    assert limited.scores(tiny.lm.model, tiny.lm.tokenizer)["letters"]["acc"] in (0, 0.5, 1)


def test_an_unknown_task_is_named_before_the_work_starts() -> None:
    with pytest.raises(PPFError, match="cannot be loaded .*'nonsense'"):
        Tasks(["nonsense"], limit=None, batch=1)


def test_the_command_does_not_stand_in_for_the_package_evaluate(root: Path) -> None:
    sys.path.insert(0, str(root))
    with _without_script_folder():
        assert str(root) not in sys.path
    assert sys.path.pop(0) == str(root)
