"""Gradients of a pruned model on disjoint parts of the calibration windows."""

from collections.abc import Hashable
from pathlib import Path

import torch

from ppf.artefacts import Artefacts
from ppf.context.calibration import Calibration
from ppf.pruning import loss_changes
from tests.observing import NO_TOKENS
from tests.ranks import FakeRanks
from tests.tiny import TinySetup


def test_all_sets_together_are_the_calibration_part(tiny: TinySetup, tmp_path: Path) -> None:
    pruner, passes = tiny.pruner(), dict[Hashable, int]()
    artefacts = Artefacts(tmp_path, FakeRanks(0, []))
    calibration = Calibration(pruner, tiny.windows, NO_TOKENS, "bank", artefacts, passes)
    kept = (tiny.space.units // 2).tolist()
    whole = loss_changes(pruner, kept, tiny.windows, 2.0)
    every = calibration.changes(kept, 3, 9, 2.0)  # three, three and two windows
    torch.testing.assert_close(every, whole, rtol=1e-3, atol=1e-5)
    assert sum(passes.values()) == 3 * tiny.windows.numel()
    first = calibration.changes(kept, 3, 1, 2.0)
    assert (first - whole).abs().max() > 1e-3 * whole.abs().max()
    assert sum(passes.values()) == 3 * tiny.windows[:3].numel()


def test_the_tokens_of_expected_losses_count(tiny: TinySetup, tmp_path: Path) -> None:
    passes = dict[Hashable, int]()
    artefacts = Artefacts(tmp_path, FakeRanks(0, []))
    Calibration(tiny.pruner(), tiny.windows, NO_TOKENS, "bank", artefacts, passes).expected_losses()
    assert sum(passes.values()) == 3 * tiny.windows[::4].numel()
