"""How a search at one ratio spends its labels, and what it calls its result."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Agent, Candidates, Objective
from ppf.agents.rule import Rule
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.policy_search import AgentRuns, PolicyResult, Problem, RealModel, Static
from ppf.policy_search.runner import run_search
from ppf.policy_search.selection import Selection
from ppf.predictor.base import Trained
from ppf.progress import Stopwatch
from ppf.pruning import Allocation, SiteFeatures
from tests.agents.synthetic import Quadratic, agent, features, layered, one_process
from tests.composing import command_config
from tests.policy_search.test_intervals import verified

EVERY = torch.tensor([True, True])
ROUNDS = torch.tensor([0, 0])


def settings(mode: str = "static", **given: object) -> Any:
    """The mode of a config."""
    chosen = [f"search.{key}={value}" for key, value in given.items()]
    return instantiate(command_config("search", [f"mode={mode}", *chosen]).search)


def problem_of(folder: Path, measured: list[int], **changed: Any) -> Problem:
    """Of a random search; `measured` gets the number of policies of each measurement."""
    space = layered()
    predictor = Quadratic(space, 0.3)

    def fit(labels: Labels) -> Trained:
        return Trained(predictor, folder, "made up")

    def measure(kept: Int[Tensor, "n sites"]) -> Float[Tensor, " n"]:
        measured.append(len(kept) - 1)  # without uniform pruning
        return predictor.relaxed(kept.float()) + 0.5

    found = Problem(
        agent("random", evaluations=64, polish=None),
        features(space),
        {},
        [0.3],
        RealModel(measure, lambda windows: None, fit),
        AgentRuns(one_process(), 0),
    )
    return replace(found, **changed)


def started(problem: Problem) -> tuple[Labels, Trained]:
    """The dense model's label, and a predictor."""
    labels = Labels(problem.space.dense[None], torch.zeros(1), ["sampler"])
    return labels, problem.model.fit(labels)


def searched(problem: Problem, start: Tensor | None = None, **given: object) -> PolicyResult:
    """What a search finds; the policy `start` is measured too."""
    static: Static = settings(**given)
    more = {"measure_start": start is not None, "proposals_only": static.proposals_only}
    return static.at(0.3, problem, *started(problem), Stopwatch(), start, **more)


def test_each_round_measures_top_k_proposals(tmp_path: Path) -> None:
    measured: list[int] = []
    given = {"rounds": 3, "top_k": 4}
    found = searched(problem_of(tmp_path, measured), **given)
    assert measured == [4, 4, 4]
    assert found.rounds[1:].bincount().tolist() == measured  # without uniform pruning
    assert sum(measured) == settings(**given).evaluations(0, 0) - 1


def test_a_search_ends_when_the_next_proposals_promise_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rounds(least_gain: float | None) -> tuple[int, float | None]:
        measured: list[int] = []
        problem, given = problem_of(tmp_path, measured), {"rounds": 4, "trust_region": 0.1}
        found = searched(problem, **given, least_gain="null" if least_gain is None else least_gain)
        return len(measured), found.promised

    assert rounds(None) == rounds(0.0) == (4, None)
    count, promised = rounds(1.0)
    assert count == 1 and promised is not None and promised < 1
    assert "Predicted without measurements: perplexity" in capsys.readouterr().out


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Objective, Tensor, bool]]:
    """Objective, known policies and `apart` of each run that follows."""
    asked: list[tuple[Objective, Tensor, bool]] = []

    def spied(
        searcher: Agent, objective: Objective, run: Any, top_k: int, known: Tensor, *, apart: bool
    ) -> Candidates:
        asked.append((objective, known, apart))
        return run_search(searcher, objective, run, top_k, known, apart=apart)

    monkeypatch.setattr("ppf.policy_search.static.run_search", spied)
    return asked


def test_a_round_starts_from_what_was_measured_and_does_not_propose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spy(monkeypatch)
    found = searched(problem_of(tmp_path, []), rounds=2, top_k=4).measured
    (first, baselines, _), (second, known, _) = asked
    assert first.measured is None and torch.equal(baselines, first.baselines())
    assert torch.equal(second.measured, known) and len(known) == 5  # uniform pruning too
    losses = {
        tuple(k): float(nll) for k, nll in zip(found.kept.tolist(), found.measured, strict=True)
    }
    ranked = [losses[tuple(k)] for k in known.tolist()]
    assert ranked == sorted(ranked)


def test_a_site_loses_at_most_half_of_what_it_kept_in_useful_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spy(monkeypatch)
    found = searched(problem_of(tmp_path, []), rounds=2, top_k=4).measured
    (first, _, _), (second, _, _) = asked
    uniform = first.uniform()[0]
    assert first.least is not None and torch.equal(first.least, uniform // 2)
    useful = found.kept[:5][found.measured[:5] <= found.measured[0]]
    assert second.least is not None and torch.equal(second.least, useful.min(0).values // 2)
    assert (found.kept >= first.least.minimum(second.least)).all()


def test_the_first_round_starts_from_a_policy_of_another_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, space = spy(monkeypatch), layered()
    start = space.units.clone()
    start[1::2] = torch.arange(len(start) // 2) % 2 * 24
    found = searched(problem_of(tmp_path, []), start, rounds=1, top_k=4)
    ((objective, _, _),) = asked
    assert objective.measured is not None and len(objective.measured) == 1
    assert space.saved(objective.measured)[0] == pytest.approx(0.3, abs=0.01)
    scaled = objective.measured[0, 1::2]
    assert scaled[1::2].min() > scaled[::2].max()
    assert objective.measured[0].tolist() in found.measured.kept.tolist()


def test_the_result_is_the_best_on_both_parts() -> None:
    measured = replace(verified(torch.tensor([0.0, 0.1])), kept=torch.tensor([[4, 4], [2, 6]]))
    losses = torch.tensor([[3.0], [3.1]]), torch.tensor([[3.5, 3.5], [3.3, 3.3]])
    found = PolicyResult(None, measured, [], EVERY, ROUNDS)  # type: ignore[arg-type]
    assert found.kept == [4, 4]
    found = replace(found, selection=Selection([0, 1], [0, 1], *losses))
    assert (found.kept, found.nll) == ([2, 6], pytest.approx(3.1))


@pytest.mark.parametrize("nll", [3.5, torch.nan])
def test_the_result_is_eligible_even_where_uniform_pruning_is_better(nll: float) -> None:
    measured = verified(torch.tensor([0.0, nll - 3]))
    found = PolicyResult(None, measured, [], torch.tensor([False, True]), ROUNDS)  # type: ignore[arg-type]
    assert found.best == 1


class Wrong(Allocation):
    """Prunes what `Quadratic` would keep."""

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space = layered()
        target, share = Quadratic(space, 0.3).target * space.units, space.shares(ratio)
        return 2 * share - target


def test_a_rule_that_is_predicted_worse_than_uniform_is_measured_and_the_result(
    tmp_path: Path,
) -> None:
    wrong = Rule(allocation=Wrong(), polish=None)
    found = searched(problem_of(tmp_path, [], agent=wrong), top_k=1)
    assert len(found.measured.kept) == 2 and found.best == 1
    assert found.nll > float(found.measured.measured[0])


def test_proposals_alone_can_be_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, given = problem_of(tmp_path, []), {"rounds": 1, "top_k": 2, "trust_region": 0.01}
    assert searched(problem, **given).eligible.tolist() == [True, True, True]
    own = searched(problem, **given, proposals_only=True)
    assert own.eligible.tolist() == [False, True, True]

    def none(_: Agent, objective: Objective, *given: Any, **more: Any) -> Candidates:
        return objective.candidates(objective.uniform()).best(0)

    monkeypatch.setattr("ppf.policy_search.static.run_search", none)
    with pytest.raises(PPFError, match="proposed no new policy"):
        searched(problem, rounds=1, proposals_only=True)


def test_a_search_starts_from_the_policy_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, seen = problem_of(tmp_path, [], trusted=["mine.Class"]), list[Any]()
    kept = {name: units // 2 for name, units in problem.space.units_by_name.items()}
    record = {"kept": kept, "units": problem.space.units_by_name, "selection": {"windows": 4}}
    read = {(tmp_path / "policy.json", "mine.Class"): record}
    monkeypatch.setattr(
        "ppf.policy_search.static.read_policy", lambda file, trusted: read[Path(file), *trusted]
    )
    monkeypatch.setattr(Static, "at", lambda *given, **more: seen.extend([*given, more]))
    labels, trained = started(problem)
    settings(start=tmp_path / "policy.json").search(problem, labels, trained, Stopwatch())
    *_, start, more = seen
    assert start.tolist() == list(kept.values()) and more == {
        "measure_start": True,
        "proposals_only": False,
    }
    assert "chosen with the help of a selection part" in capsys.readouterr().out
