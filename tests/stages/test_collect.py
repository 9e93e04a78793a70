from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ppf.stages.collect import collect
from tests.searched import write_search


def test_drawn_policies_count_as_evaluations_and_are_labelled_once(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cfg, context = write_search(tmp_path, cache)
    parts, cfg.labels.count = (cfg, context), 3
    labels = collect(*parts)
    assert context.labelling.used == set(map(tuple, labels.kept.tolist()))
    assert len(context.labelling.used) == 3
    capsys.readouterr()
    assert collect(*parts).nll.equal(labels.nll)
    assert capsys.readouterr().out.startswith("Reusing 3 labels in ")


def test_screening_stores_nothing_and_counts_tokens(cache: str, tmp_path: Path) -> None:
    _, context = write_search(tmp_path, cache)
    labelling = context.labelling
    (window,) = labelling.windows
    half = context.model.space.units // 2
    policies = torch.stack([half, context.model.space.units, half])
    found = labelling.screen(policies, 1, 5).tolist()  # there is only one window
    both = replace(labelling, windows=torch.stack([window.flip(0), window]))
    same = [both.screen(policies, 1, first).tolist() == found for first in (0, 1, 2, 3)]
    assert same == [False, True, False, True]
    assert both.screen(policies, 9, 0).tolist() == pytest.approx(both.screen(policies, 2, 1))
    labelling.passes.clear()
    labelling.screen(policies, 1, 5)
    assert found[0] == found[2] != found[1]
    assert labelling.token_passes == 2 * len(window)  # equal policies are screened once
    assert not labelling.used
    assert labelling.measure(policies, "sampler").nll.tolist() == pytest.approx(found)
    assert labelling.token_passes == 4 * len(window)
