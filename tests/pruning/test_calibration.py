"""Gradients of a pruned model on disjoint parts of the calibration windows."""

from dataclasses import replace
from pathlib import Path

import torch

from ppf.artefacts import Artefacts
from ppf.pruning import loss_changes
from ppf.pruning.calibration import Calibration
from ppf.pruning.compensation import LeastSquares, LeastSquaresWithoutBias
from tests.observing import NO_TOKENS
from tests.ranks import FakeRanks
from tests.tiny import TinySetup


def calibrated(tiny: TinySetup, folder: Path) -> Calibration:
    artefacts = Artefacts(folder, FakeRanks(0, []))
    return Calibration(
        tiny.pruner(), tiny.windows, tiny.windows[:0], NO_TOKENS, "bank", artefacts, {}
    )


def test_all_sets_together_are_the_calibration_part(tiny: TinySetup, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path)
    pruner, passes = calibration.pruner, calibration.passes
    kept = (tiny.space.units // 2).tolist()
    whole = loss_changes(pruner, kept, tiny.windows, 2.0)
    every = calibration.changes(kept, 3, 9, 2.0)  # three, three and two windows
    torch.testing.assert_close(every, whole, rtol=1e-3, atol=1e-5)
    assert sum(passes.values()) == 3 * tiny.windows.numel()
    first = calibration.changes(kept, 3, 1, 2.0)
    assert (first - whole).abs().max() > 1e-3 * whole.abs().max()
    assert sum(passes.values()) == 3 * tiny.windows[:3].numel()


def test_the_tokens_of_expected_losses_count(tiny: TinySetup, tmp_path: Path) -> None:
    calibration = calibrated(tiny, tmp_path)
    calibration.expected_losses()
    assert sum(calibration.passes.values()) == 3 * tiny.windows[::4].numel()


def test_each_policy_and_its_windows_have_their_own_stored_refit(
    tiny: TinySetup, tmp_path: Path
) -> None:
    calibration = calibrated(tiny, tmp_path)
    refit, folder = LeastSquares(damping=0.1, refit_damping=0.3), tmp_path / "sequential"
    for units, windows, stored in ((2, 2, 1), (2, 2, 1), (2, 3, 2), (3, 2, 3)):
        calibration.pruner.apply((tiny.space.units // units).tolist())
        calibration.refit_sequentially(windows, refit)
        assert len(list(folder.iterdir())) == stored
    calibration.pruner.apply((tiny.space.units // 2).tolist())
    calibration.refit_sequentially(2, LeastSquaresWithoutBias(damping=0.1, refit_damping=0.3))
    assert len(list(folder.iterdir())) == 4


def test_re_estimation_reads_further_windows_after_those_of_the_statistics(
    tiny: TinySetup, tmp_path: Path
) -> None:
    windows, others = torch.arange(4)[:, None], torch.arange(10, 19)[:, None]
    known = replace(calibrated(tiny, tmp_path), windows=windows, others=others)
    chosen = {count: known.refit_windows(count).flatten().tolist() for count in (2, 4, 7, 99, None)}
    assert chosen[2] == [0, 3] and chosen[4] == [0, 1, 2, 3]
    assert chosen[7] == [0, 1, 2, 3, 10, 14, 18]
    assert chosen[99] == chosen[None] == [*range(4), *range(10, 19)]
