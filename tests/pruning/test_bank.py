from pathlib import Path

import pytest
import torch

from ppf.llm import LanguageModel
from ppf.pruning import Bank, LivePruner
from ppf.pruning.bank import factors_gib
from ppf.pruning.compensation import Bias, Compensation, LeastSquares, Levels, NoCompensation
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


def test_computed_weights_are_kept_as_long_as_they_fit(lm: LanguageModel, tmp_path: Path) -> None:
    whole = bank(lm, tmp_path, 1.0)
    dense, orders = [coupling.consumer.weight for coupling in lm.couplings], whole.orders
    wide, narrow = ((1, level, dense[1], orders[1]) for level in (2, 1))
    other = 3, 1, dense[3], orders[3]
    first, second = whole.weight(*wide), whole.weight(*narrow)
    assert first is whole.weight(*wide) and second is whole.weight(*narrow)
    small = bank(lm, tmp_path, (first.nbytes + second.nbytes) / 2**30)
    kept, oldest = small.weight(*wide), small.weight(*narrow)
    assert kept is small.weight(*wide)  # used later than the other one
    third = small.weight(*other)
    assert kept is small.weight(*wide) and third is small.weight(*other)
    assert oldest is not small.weight(*narrow)
    none = bank(lm, tmp_path, 0.0)
    assert none.weight(*wide) is not none.weight(*wide)
    torch.testing.assert_close(logits(lm, none), logits(lm, whole), atol=0, rtol=0)


FORMS = pytest.mark.parametrize(
    "compensation", [LEAST_SQUARES, Bias(), NoCompensation()], ids=["factors", "biases", "none"]
)


@FORMS
def test_a_stored_bank_is_read_and_gives_the_same_models_to_the_bit(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compensation: Compensation
) -> None:
    made = bank(lm, tmp_path, 1.0, compensation)
    with monkeypatch.context() as patched:
        patched.setattr(type(compensation), "levels", None)
        stored = bank(lm, tmp_path, 1.0, compensation)
    assert torch.equal(stored.errors, made.errors)
    torch.testing.assert_close(logits(lm, stored), logits(lm, made), atol=0, rtol=0)


@FORMS
def test_a_damaged_file_is_made_again(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture, compensation: Compensation
) -> None:
    bank(lm, tmp_path, 1.0, compensation)
    for file in sorted(tmp_path.glob("*/*.safetensors"))[:2]:
        whole = file.read_bytes()
        file.write_bytes(bytes([*whole[:-5], whole[-5] ^ 0x40, *whole[-4:]]))
        bank(lm, tmp_path, 1.0, compensation)
        assert file.read_bytes() == whole
        assert "its checksum is wrong): it is made again" in capsys.readouterr().out


def test_a_norm_behind_an_empty_site_has_no_bias_to_scale(tmp_path: Path) -> None:
    made = bank(random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]), tmp_path, 1.0)
    for levels in made.levels:
        assert levels.biases is not None and levels.errors[0] == 1
        assert not levels.biases[0].any() and (len(levels.biases) == 2 or levels.biases[1].any())


def test_files_are_as_large_as_planned(lm: LanguageModel, tmp_path: Path) -> None:
    shapes = [coupling.consumer.weight.shape for coupling in lm.couplings]
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):
        lm.model.to(dtype)
        made, exact = (bank(lm, folder, 1.0) for folder in (tmp_path / str(dtype), None))
        size = sum(file.stat().st_size for file in (tmp_path / str(dtype)).rglob("*.safetensors"))
        assert size == pytest.approx(factors_gib(shapes, dtype) * 2**30, rel=0.4)
        for number, coupling in enumerate(lm.couplings):
            given = coupling.consumer.weight, exact.orders[number]
            for kept in range(len(made.levels[number].errors)):
                weight = exact.weight(number, kept, *given)
                if weight is not None:
                    error = (made.weight(number, kept, *given) - weight).norm()
                    assert error <= tolerance * weight.norm()


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
