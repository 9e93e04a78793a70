"""The order of a chain's searches, and what each one knows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.policy_search import AgentResult, Chain, PolicyResult
from ppf.progress import Stopwatch
from ppf.pruning.allocation import ObsGlobal
from tests.agents.synthetic import layered
from tests.policy_search.test_static import problem_of, settings


def chained(folder: Path) -> AgentResult:
    problem = problem_of(folder, [], rules={"obs_global": ObsGlobal()}, ratios=[0.1, 0.35])
    labels = Labels(problem.space.dense[None], torch.tensor([3.0]), ["sampler"])
    chain = settings("chain", range="[0.1,0.6]", points=3, rounds=2, top_k=4)
    return chain.search(problem, labels, problem.model.fit(labels), Stopwatch())


def test_each_search_knows_what_the_earlier_ones_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    found: list[PolicyResult] = []
    at = Chain.at

    def spied(self: Chain, *given: Any) -> PolicyResult:
        calls.append(given)
        found.append(at(self, *given))
        return found[-1]

    monkeypatch.setattr(Chain, "at", spied)
    result = chained(tmp_path)
    assert [ratio for ratio, *_ in calls] == [0.6, 0.35, 0.1]
    assert [len(problem.rules) for _, problem, *_ in calls] == [1, 0, 0]
    assert [sum("obs_global" in n for n in f.measured.names) for f in found] == [1, 0, 0]
    starts = [start for *_, start in calls]
    assert starts[0] is None
    assert [start.tolist() for start in starts[1:]] == [f.kept for f in found[:-1]]
    known = [len(labels) for _, _, labels, *_ in calls]
    assert known == [1, 1 + len(found[0].measured.kept), known[1] + len(found[1].measured.kept)]
    rounds = [row["round"] for row in result.history]
    assert rounds == sorted(rounds) and max(rounds) == 6
    agent = result.agent
    assert agent.knots.tolist() == [0, 0.1, 0.35, 0.6]
    assert agent.widths[1:].tolist() == [f.kept for f in reversed(found)]
    assert agent.mean[1:].tolist() == pytest.approx([f.nll for f in reversed(found)])
    assert (agent.std[1:] > 0).all() and agent.std[0] == 0 and agent.mean[0] == 3
    assert result.curve.measured[0] == pytest.approx(found[-1].nll)
    assert agent.policy(0.0) == layered().dense.tolist()


def test_infinite_losses_end_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Chain.at

    def lost(self: Chain, *given: Any) -> PolicyResult:
        found = at(self, *given)
        nothing = torch.full_like(found.measured.measured, torch.inf)
        return replace(found, measured=replace(found.measured, measured=nothing))

    monkeypatch.setattr(Chain, "at", lost)
    with pytest.raises(PPFError, match="no policy at ratio=0.6 has a finite loss"):
        chained(tmp_path)
