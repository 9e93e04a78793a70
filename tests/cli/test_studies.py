"""Experiments of another command are refused with the name of their command."""

import pytest

from ppf.cli.studies import check_studies
from ppf.errors import PPFError
from tests.cli.conftest import Run
from tests.cli.test_errors import sentence


@pytest.mark.parametrize(
    ("command", "override", "owner", "given"),
    [
        ("search", "experiment=recovery/curve", "recover", "experiment=recovery/curve"),
        ("search", "experiment=none,predictor/table", "train", "experiment=predictor/table"),
        ("train", "hparams_search=agent_optuna", "search", "hparams_search=agent_optuna"),
        ("prune", "experiment=bytes/prune", "search", "experiment=bytes/prune"),
    ],
)
def test_the_right_command_is_named(command: str, override: str, owner: str, given: str) -> None:
    with pytest.raises(PPFError, match=f"is for {owner}, .* give ppf-{owner} -m {given}."):
        check_studies(command, ["seed=0", override])


def test_own_and_unknown_experiments_are_left_to_hydra() -> None:
    given = ["experiment=search/rules", "hparams_search=none", "experiment=mine", "ratio=0.3,0.4"]
    check_studies("search", given)


def test_a_command_refuses_before_it_composes(run: Run) -> None:
    wrong = sentence(run, "search", "experiment=recovery/objective")
    assert "experiment=recovery/objective is for recover, not for search" in wrong
