from pathlib import Path

import pytest
import torch

from ppf.llm import LanguageModel
from ppf.pruning import Bank, LivePruner
from ppf.pruning.bank import bank_size
from ppf.pruning.compensation import (
    Bias,
    Compensation,
    Factors,
    LeastSquares,
    Levels,
    NoCompensation,
)
from tests.checkpoints import (
    CHECKPOINTS,
    calibrated,
    policies,
    random_model,
    random_windows,
    width_space,
)
from tests.ranks import FakeRanks

LEAST_SQUARES = LeastSquares(damping=0.01, refit_damping=0.1)


def bank(
    lm: LanguageModel,
    folder: Path | None,
    max_gib: float,
    compensation: Compensation = LEAST_SQUARES,
    channel_multiple: int = 16,
    ranks: FakeRanks | None = None,
) -> Bank:
    statistics, orders = calibrated(lm)
    given = width_space(lm, channel_multiple), orders, statistics, compensation
    return Bank.build(lm, *given, max_gib=max_gib, folder=folder, ranks=ranks)


def logits(lm: LanguageModel, made: Bank) -> list[torch.Tensor]:
    """Of all policies."""
    found, pruner = [], LivePruner(lm, width_space(lm), made)
    for kept in policies(pruner.space).values():
        with pruner.at(kept) as model:
            found.append(model(random_windows()).logits)
    pruner.restore()
    return found


def test_a_bank_of_factors_gives_the_same_models(lm: LanguageModel, tmp_path: Path) -> None:
    ready, spilled = bank(lm, tmp_path, 1.0), bank(lm, tmp_path, 1e-9)
    folders = {len(list(folder.glob("*.safetensors"))) for folder in tmp_path.iterdir()}
    assert folders == {len(ready.levels)}
    assert all(isinstance(level.weights, Factors) for level in spilled.levels)
    assert torch.equal(ready.errors, spilled.errors)
    torch.testing.assert_close(logits(lm, spilled), logits(lm, ready), atol=1e-4, rtol=1e-4)


FORMS = pytest.mark.parametrize(
    ("max_gib", "compensation"),
    [(1e-9, LEAST_SQUARES), (1.0, LEAST_SQUARES), (1.0, Bias()), (1.0, NoCompensation())],
    ids=["factors", "weights", "biases", "none"],
)


@FORMS
def test_a_stored_bank_is_read_and_gives_the_same_models_to_the_bit(
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_gib: float,
    compensation: Compensation,
) -> None:
    made = bank(lm, tmp_path, max_gib, compensation)
    with monkeypatch.context() as patched:
        patched.setattr(type(compensation), "levels", None)
        stored = bank(lm, tmp_path, max_gib, compensation)
    assert torch.equal(stored.errors, made.errors)
    torch.testing.assert_close(logits(lm, stored), logits(lm, made), atol=0, rtol=0)


@FORMS
def test_a_damaged_file_is_made_again(
    lm: LanguageModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    max_gib: float,
    compensation: Compensation,
) -> None:
    bank(lm, tmp_path, max_gib, compensation)
    for file in sorted(tmp_path.glob("*/*.safetensors"))[:2]:
        whole = file.read_bytes()
        file.write_bytes(bytes([*whole[:-5], whole[-5] ^ 0x40, *whole[-4:]]))
        bank(lm, tmp_path, max_gib, compensation)
        assert file.read_bytes() == whole
        assert "its checksum is wrong): it is made again" in capsys.readouterr().out


def test_a_norm_behind_an_empty_site_has_no_bias_to_scale(tmp_path: Path) -> None:
    made = bank(random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]), tmp_path, 1.0)
    for levels in made.levels:
        assert levels.biases is not None and levels.errors[0] == 1
        assert not levels.biases[0].any() and (len(levels.biases) == 2 or levels.biases[1].any())


def test_errors_decrease_with_the_kept_units(lm: LanguageModel, tmp_path: Path) -> None:
    space = width_space(lm)
    for site, level in zip(space.sites, bank(lm, tmp_path, 1.0).levels, strict=True):
        assert len(level.errors) == site.units + 1
        assert 0.8 < level.errors[0] < 1 and level.errors[-1] == 0  # the bias keeps the mean
        assert (level.errors.diff() <= 0).all()


def test_factors_that_fit_are_read_once(lm: LanguageModel, tmp_path: Path) -> None:
    space, shapes = width_space(lm, 1), [c.consumer.weight.shape for c in lm.couplings]
    factors = sum(4 * columns * (rows + 9 / 16 * columns) for rows, columns in shapes) / 2**30
    for limit, in_memory in ((factors * 1.01, True), (factors * 0.99, False)):
        size = bank_size(shapes, space, torch.float32, limit, [torch.device("cpu")])
        assert size == (True, in_memory, *[pytest.approx(factors)] * 2)
        for level in bank(lm, tmp_path, limit, channel_multiple=1).levels:
            assert isinstance(level.weights, Factors)
            assert isinstance(level.weights.projected, torch.Tensor) == in_memory


def test_files_of_ready_levels_have_their_factors_too(lm: LanguageModel, tmp_path: Path) -> None:
    made, space = bank(lm, tmp_path, 1.0), width_space(lm)
    shapes = [c.consumer.weight.shape for c in lm.couplings]
    planned = bank_size(shapes, space, torch.float32, 1.0, [torch.device("cpu")])
    assert not planned.factored and planned.disk > planned.gib
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert size == pytest.approx(planned.disk * 2**30, rel=0.2)
    for level in made.levels:
        for ready, factored in zip(level.weights, level.factors, strict=False):
            torch.testing.assert_close(ready, factored, rtol=1e-3, atol=1e-4)


def test_factors_of_a_16_bit_model_are_stored_in_16_bits(lm: LanguageModel, tmp_path: Path) -> None:
    lm.model.to(torch.bfloat16)
    exact = bank(lm, tmp_path / "exact", 1.0)
    spilled = bank(lm, tmp_path / "spilled", 1e-9)
    size = sum(file.stat().st_size for file in (tmp_path / "spilled").rglob("*.safetensors"))
    shapes = [c.consumer.weight.shape for c in lm.couplings]
    numbers = sum(columns * (rows + 9 / 16 * columns) for rows, columns in shapes)
    assert 2 * numbers < size < 3 * numbers
    for level, whole in zip(spilled.levels, exact.levels, strict=True):
        for kept, weight in enumerate(whole.weights):
            assert (level.weights[kept] - weight).norm() <= 0.05 * weight.norm()


def test_ranks_make_different_factors(lm: LanguageModel, tmp_path: Path) -> None:
    made: list[int] = []

    class Noted(LeastSquares):
        def levels(self, weight, *arguments, **named) -> Levels:
            made.append(weight.shape[1])
            return super().levels(weight, *arguments, **named)

    method = Noted(damping=0.01, refit_damping=0.1)
    banks = [bank(lm, tmp_path, 0.0, method, ranks=FakeRanks(1, [])) for _ in range(2)]
    widths = [coupling.consumer.in_features for coupling in lm.couplings]
    assert len(made) == len(widths)  # the second bank reads the first one's files
    assert made[: len(widths[1::2])] == widths[1::2]  # its own come first
    assert torch.equal(banks[0].errors, banks[1].errors)
