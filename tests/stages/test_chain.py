"""The order of a chain's searches, and what each one knows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.progress import Stopwatch
from ppf.pruning.allocation import ObsGlobal
from ppf.stages import chain as module
from ppf.stages.chain import chain
from ppf.stages.dynamic import FoundAgent
from ppf.stages.search import Found
from tests.agents.synthetic import layered
from tests.stages.test_search import inputs_of

RATIOS = [0.1, 0.35]
SETTINGS = OmegaConf.create({"train": [0.1, 0.6], "knots": 3})


def chained(folder: Path, choose: Any = lambda found: found) -> FoundAgent:
    inputs = replace(inputs_of(folder, [], rounds=2, top_k=4), rules={"obs_global": ObsGlobal()})
    labels = Labels(inputs.space.dense[None], torch.tensor([3.0]), ["sampler"])
    trained = inputs.train(labels)
    return chain(inputs, labels, trained, SETTINGS, RATIOS, {}, Stopwatch(), choose)


def test_each_search_knows_what_the_earlier_ones_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    found: list[Found] = []

    def spied(*given: Any, start: Any, history: Any) -> Found:
        calls.append((*given, start, len(history)))
        found.append(search(*given, start=start, history=history))
        return found[-1]

    search = module.search
    monkeypatch.setattr(module, "search", spied)
    result = chained(tmp_path)
    assert [ratio for *_, ratio, _, _, _ in calls] == [0.6, 0.35, 0.1]
    assert [len(inputs.rules) for inputs, *_ in calls] == [1, 0, 0]
    assert [sum("obs_global" in n for n in f.measured.names) for f in found] == [1, 0, 0]
    starts = [start for *_, start, _ in calls]
    assert starts[0] is None
    assert [start.tolist() for start in starts[1:]] == [f.kept for f in found[:-1]]
    known = [len(labels) for _, labels, *_ in calls]
    assert known == [1, 1 + len(found[0].measured.kept), known[1] + len(found[1].measured.kept)]
    rounds = [row["round"] for row in result.course.history]
    assert rounds == sorted(rounds) and max(rounds) == 6
    agent = result.agent
    assert agent.knots.tolist() == [0, 0.1, 0.35, 0.6]
    assert agent.widths[1:].tolist() == [f.kept for f in reversed(found)]
    assert agent.mean[1:].tolist() == pytest.approx([f.nll for f in reversed(found)])
    assert (agent.std[1:] > 0).all() and agent.std[0] == 0 and agent.mean[0] == 3
    assert result.curve.measured[0] == pytest.approx(found[-1].nll)


def test_the_agent_has_the_policies_that_were_chosen(tmp_path: Path) -> None:
    def worst(found: Found) -> Found:
        last = torch.arange(len(found.eligible)) == len(found.eligible) - 1
        return replace(found, eligible=last)

    agent = chained(tmp_path, worst).agent
    assert agent.mean[1] > chained(tmp_path).agent.mean[1]


def test_infinite_losses_end_the_chain(tmp_path: Path) -> None:
    def lost(found: Found) -> Found:
        nothing = torch.full_like(found.measured.measured, torch.inf)
        return replace(found, measured=replace(found.measured, measured=nothing))

    with pytest.raises(PPFError, match="no policy at ratio=0.6 has a finite loss"):
        chained(tmp_path, lost)


def test_the_dense_model_is_its_policy_at_ratio_zero(tmp_path: Path) -> None:
    assert chained(tmp_path).agent.policy(0.0) == layered().dense.tolist()
