from pathlib import Path

import pytest

from ppf.errors import PPFError
from ppf.stages.collect import collect
from tests.searched import write_search


def test_drawn_policies_count_as_evaluations_and_are_labelled_only_where_allowed(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cfg, context = write_search(tmp_path, cache)
    with pytest.raises(PPFError, match="no labels for this config: run `python collect.py` first"):
        collect(context, cfg.sampler, 3, seed=0, may_label=False)
    labels = collect(context, cfg.sampler, 3, seed=0)
    assert context.labeller.used == set(map(tuple, labels.kept.tolist()))
    assert len(context.labeller.used) == 3
    capsys.readouterr()
    assert collect(context, cfg.sampler, 3, seed=0, may_label=False).nll.equal(labels.nll)
    assert capsys.readouterr().out.startswith("Reusing 3 labels in ")
