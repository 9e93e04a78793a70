from pathlib import Path

import pytest
import torch

from ppf.llm import LanguageModel
from ppf.pruning import Bank, LivePruner
from ppf.pruning.compensation import Bias, Compensation, Factors, LeastSquares, Levels
from tests.checkpoints import (
    CHECKPOINTS,
    calibrated,
    policies,
    random_model,
    random_windows,
    width_space,
)

LEAST_SQUARES = LeastSquares(damping=0.01, refit_damping=0.1)


@pytest.fixture
def lm() -> LanguageModel:
    return random_model(CHECKPOINTS["llama-biases"])


class Spent(LeastSquares):
    def levels(self, *arguments: object, **named: object) -> Levels:
        raise AssertionError("solved again")


def bank(
    lm: LanguageModel, folder: Path, max_gib: float, compensation: Compensation = LEAST_SQUARES
) -> Bank:
    statistics, orders = calibrated(lm)
    space = width_space(lm)
    return Bank.build(lm, space, orders, statistics, compensation, max_gib=max_gib, folder=folder)


def test_a_bank_of_factors_gives_the_same_models(lm: LanguageModel, tmp_path: Path) -> None:
    ready, spilled = bank(lm, tmp_path, 1.0), bank(lm, tmp_path, 1e-9)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(ready.levels)
    assert all(isinstance(level.weights, Factors) for level in spilled.levels)
    assert torch.equal(ready.errors, spilled.errors)
    space, ids = width_space(lm), random_windows()
    expected = {}
    pruner = LivePruner(lm, space, ready)
    for name, kept in policies(space).items():
        with pruner.at(kept) as model:
            expected[name] = model(ids).logits
    pruner.restore()
    pruner = LivePruner(lm, space, spilled)
    for name, kept in policies(space).items():
        with pruner.at(kept) as model:
            torch.testing.assert_close(model(ids).logits, expected[name], atol=1e-4, rtol=1e-4)


def test_files_of_factors_are_reused(lm: LanguageModel, tmp_path: Path) -> None:
    first = bank(lm, tmp_path, 1e-9)
    again = bank(lm, tmp_path, 1e-9, Spent(damping=0.01, refit_damping=0.1))
    assert torch.equal(again.errors, first.errors)


def test_a_damaged_file_of_factors_is_made_again(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bank(lm, tmp_path, 1e-9)
    for file in tmp_path.glob("*.safetensors"):
        whole = file.read_bytes()
        file.write_bytes(bytes([*whole[:-5], whole[-5] ^ 0x40, *whole[-4:]]))
        bank(lm, tmp_path, 1e-9)
        assert file.read_bytes() == whole
        assert "its checksum is wrong): it is made again" in capsys.readouterr().out


def test_errors_decrease_with_the_kept_units(lm: LanguageModel, tmp_path: Path) -> None:
    space = width_space(lm)
    for site, level in zip(space.sites, bank(lm, tmp_path, 1.0).levels, strict=True):
        assert len(level.errors) == site.units + 1
        assert 0.8 < level.errors[0] < 1 and level.errors[-1] == 0  # the bias keeps the mean
        assert (level.errors.diff() <= 0).all()


def test_a_bank_that_changes_no_weights_writes_no_files(lm: LanguageModel, tmp_path: Path) -> None:
    bank(lm, tmp_path, 1e-9, Bias())
    assert not list(tmp_path.iterdir())
