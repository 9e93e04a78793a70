"""A search's best policies on windows that no label reads."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ppf.search import Verification
from ppf.space import uniform
from ppf.stages.results import _measured
from ppf.stages.search import Found
from ppf.stages.selection import with_selection
from tests.searched import write_search


def test_the_best_are_measured_on_both_parts(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, context = write_search(tmp_path, cache)
    labelling = context.labelling
    kept = uniform(context.model.space, torch.tensor([0.3, 0.4]))
    scores = [labelling.labeller.score(policy.tolist()) for policy in kept]
    zeros, names = torch.zeros(2), (("uniform",), ("candidate",))
    measured = Verification(names, kept, zeros, zeros, torch.tensor(scores))
    found = Found(None, measured, [], torch.tensor([True, True]))  # type: ignore[arg-type]

    settings = OmegaConf.create({"selection_windows": 4, "finalists": 1})
    before = labelling.token_passes
    parts = with_selection(labelling, found, settings).selection
    assert parts and parts.new.shape == (len(parts.rows), 4)
    for row in parts.rows:
        assert parts.labelling(row).nll == pytest.approx(scores[row], rel=1e-5)
    read = set(map(tuple, labelling.windows.tolist()))
    assert not read & set(map(tuple, labelling.others.tolist()))

    once = labelling.token_passes - before
    with_selection(labelling, found, settings)  # as in a chain, at another ratio
    assert labelling.token_passes == before + 2 * once > before

    one = OmegaConf.create({"selection_windows": 1, "finalists": 1})
    row = _measured(context, with_selection(labelling, found, one), 0, 0.3, "uniform")
    assert "std_error" not in row["measured"] | row["selection"], "of one window"

    none = OmegaConf.create({"selection_windows": 0, "finalists": 1})
    assert with_selection(labelling, found, none) is found
    assert "selection part: search.selection_windows=0." in capsys.readouterr().out
