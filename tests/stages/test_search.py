"""How a search spends its labels, and what it calls its result."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Agent, Candidates, Objective, Run
from ppf.agents.rule import Rule
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.predictor.oracle import Oracle
from ppf.progress import Stopwatch
from ppf.pruning import Allocation, SiteFeatures
from ppf.pruning.allocation import Uniform
from ppf.search import Verification, run_search
from ppf.search.selection import Selection
from ppf.stages.fit import Trained
from ppf.stages.search import Found, search
from ppf.stages.search_inputs import SearchInputs
from tests.agents.synthetic import Quadratic, agent, features, layered, one_process

EVERY = torch.tensor([True, True])


def inputs_of(folder: Path, measured: list[int], **settings: float) -> SearchInputs:
    """Of a random search; `measured` gets the number of policies of each measurement."""
    space = layered()
    predictor = Quadratic(space, 0.3)

    def train(labels: Labels) -> Trained:
        return Trained(predictor, folder, "made up")  # type: ignore[arg-type]

    def measure(kept: Int[Tensor, "n sites"]) -> Float[Tensor, " n"]:
        measured.append(len(kept) - 1)  # without uniform pruning
        return predictor.relaxed(kept.float()) + 0.5

    with initialize_config_module("ppf.conf", version_base="1.3"):
        chosen = [f"search.{key}={value}" for key, value in settings.items()]
        config = compose("search", chosen).search
    searcher = agent("random", evaluations=64, polish=None)
    return SearchInputs(
        searcher, space, features(space), {}, config, train, measure, one_process(), 0, folder, []
    )


def searched(
    folder: Path, measured: list[int], start: Tensor | None = None, **settings: float
) -> Found:
    """What a random search finds; `measured` gets the number of policies of each round."""
    inputs = inputs_of(folder, measured, **settings)
    labels = Labels(inputs.space.dense[None], torch.zeros(1), ["sampler"])
    given: Any = {"start": start, "measure_start": True}
    return search(inputs, labels, inputs.train(labels), 0.3, Stopwatch(), **given)


@pytest.mark.parametrize(
    ("budget", "rounds", "expected"),
    [
        (10, 9, [4, 2, 4]),
        (20, 2, [4, 4]),
        (3, 9, [3]),
    ],
)
def test_the_last_round_has_its_top_k(
    tmp_path: Path, budget: int, rounds: int, expected: list[int]
) -> None:
    measured: list[int] = []
    settings = {"label_budget": budget, "rounds": rounds, "top_k": 4, "neighbours": 0}
    searched(tmp_path, measured, **settings)
    assert measured == expected


def test_a_round_starts_from_what_was_measured_and_does_not_propose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Objective, Tensor | None]] = []

    def spied(
        searcher: Agent, objective: Objective, run: Run, top_k: int, known: Tensor, **given: bool
    ) -> Candidates:
        asked.append((objective, known))
        return run_search(searcher, objective, run, top_k, known, **given)

    monkeypatch.setattr("ppf.stages.search.run_search", spied)
    found = searched(tmp_path, [], rounds=2, top_k=4).measured
    (first, baselines), (second, known) = asked
    assert first.measured is None and torch.equal(baselines, first.baselines())
    assert torch.equal(second.measured, known) and len(known) == 5  # uniform pruning too
    losses = {
        tuple(k): float(nll) for k, nll in zip(found.kept.tolist(), found.measured, strict=True)
    }
    ranked = [losses[tuple(k)] for k in known.tolist()]
    assert ranked == sorted(ranked)


def test_the_first_round_starts_from_a_policy_of_another_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Objective] = []

    def spied(searcher: Agent, objective: Objective, *given: Any, **more: Any) -> Candidates:
        asked.append(objective)
        return run_search(searcher, objective, *given, **more)

    monkeypatch.setattr("ppf.stages.search.run_search", spied)
    space = layered()
    start = space.units.clone()
    start[1::2] = torch.arange(len(start) // 2) % 2 * 24
    found = searched(tmp_path, [], start, rounds=1, top_k=4)
    (objective,) = asked
    assert objective.measured is not None and len(objective.measured) == 1
    assert space.saved(objective.measured)[0] == pytest.approx(0.3, abs=0.01)
    scaled = objective.measured[0, 1::2]
    assert scaled[1::2].min() > scaled[::2].max()
    assert objective.measured[0].tolist() in found.measured.kept.tolist()


def test_a_changed_file_of_a_users_agent_starts_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    space, file = layered(), tmp_path / "agent_of_a_user.py"
    with initialize_config_module("ppf.conf", version_base="1.3"):
        target = "agent._target_=agent_of_a_user.Own"
        cfg = compose("search", ["agent=random", target, f"paths.cache={tmp_path}"])
    labelling: Any = SimpleNamespace(artefacts=SimpleNamespace(folder=tmp_path))
    given = cfg, one_process(), space, features(space), labelling

    def checkpoint() -> Path:
        inputs = SearchInputs.of(*given, train=None)  # type: ignore[arg-type]
        trained: Any = SimpleNamespace(signature="made up")
        return inputs.run(trained, None, [], 0).checkpoint.path

    code = "from ppf.agents.random import RandomSearch\n\nclass Own(RandomSearch): ...\n"
    file.write_text(code)
    before = checkpoint()
    assert checkpoint() == before
    file.write_text(code + "# changed\n")
    assert checkpoint() != before


def test_the_result_is_the_best_on_both_parts() -> None:
    policies, zeros = torch.tensor([[4, 4], [2, 6]]), torch.zeros(2)
    measured = Verification(
        (("uniform",), ("candidate",)), policies, zeros, zeros, torch.tensor([3.0, 3.1])
    )
    losses = torch.tensor([[3.0], [3.1]]), torch.tensor([[3.5, 3.5], [3.3, 3.3]])
    found = Found(None, measured, [], EVERY)  # type: ignore[arg-type]
    assert found.kept == [4, 4]
    found = replace(found, selection=Selection([0, 1], [0, 1], *losses))
    assert (found.kept, found.nll) == ([2, 6], pytest.approx(3.1))


@pytest.mark.parametrize(("rule", "kept", "nll"), [(False, [4, 4], 3.0), (True, [2, 6], 3.5)])
def test_the_result_is_eligible_even_where_uniform_pruning_is_better(
    rule: bool, kept: list[int], nll: float
) -> None:
    policies, zeros = torch.tensor([[4, 4], [2, 6]]), torch.zeros(2)
    measured = Verification(
        (("uniform",), ("candidate",)), policies, zeros, zeros, torch.tensor([3.0, 3.5])
    )
    eligible = torch.tensor([not rule, True])
    found = Found(None, measured, [], eligible)  # type: ignore[arg-type]
    assert (found.kept, found.nll) == (kept, nll)


def test_a_rule_that_is_predicted_worse_than_uniform_is_measured_and_the_result(
    tmp_path: Path,
) -> None:
    inputs = inputs_of(tmp_path, [], top_k=1)
    wrong = Rule(allocation=Wrong(), polish=None)
    labels = Labels(inputs.space.dense[None], torch.zeros(1), ["sampler"])
    inputs = replace(inputs, agent=wrong)
    found = search(inputs, labels, inputs.train(labels), 0.3, Stopwatch())
    assert len(found.measured.kept) == 2 and found.best == 1
    assert found.nll > float(found.measured.measured[0])


class Wrong(Allocation):
    """Prunes what `Quadratic` would keep."""

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space = layered()
        target, share = Quadratic(space, 0.3).target * space.units, space.shares(ratio)
        return 2 * share - target


def test_the_result_is_eligible_even_without_a_finite_loss() -> None:
    zeros, losses = torch.zeros(2), torch.tensor([3.0, torch.nan])
    names = (("uniform",), ("candidate",))
    measured = Verification(names, torch.tensor([[4, 4], [2, 6]]), zeros, zeros, losses)
    found = Found(None, measured, [], torch.tensor([False, True]))  # type: ignore[arg-type]
    assert found.best == 1


def test_a_rule_that_is_uniform_pruning_is_the_result(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [], top_k=1)
    labels = Labels(inputs.space.dense[None], torch.zeros(1), ["sampler"])
    inputs = replace(inputs, agent=Rule(allocation=Uniform(), polish=None))
    found = search(inputs, labels, inputs.train(labels), 0.3, Stopwatch())
    assert found.measured.names == (("uniform", "candidate"),) and found.best == 0


def test_proposals_alone_can_be_the_result(tmp_path: Path) -> None:
    either = searched(tmp_path, [], rounds=1, top_k=2, trust_region=0.01)
    own = searched(tmp_path, [], rounds=1, top_k=2, trust_region=0.01, proposals_only=True)
    assert either.eligible.tolist() == [True, True, True]
    assert own.eligible.tolist() == [False, True, True]


def test_without_proposals_there_is_no_result_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(searcher: Agent, objective: Objective, *given: Any, **more: Any) -> Candidates:
        return objective.candidates(objective.uniform()).best(0)

    monkeypatch.setattr("ppf.stages.search.run_search", none)
    with pytest.raises(PPFError, match="RandomSearch proposed no new policy at ratio=0.3"):
        searched(tmp_path, [], rounds=1, proposals_only=True)


def test_the_real_model_chooses_the_best_policies_however_similar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()

    def spied(*given: Any, apart: bool) -> Candidates:
        asked.append(apart)
        return run_search(*given, apart=apart)

    monkeypatch.setattr("ppf.stages.search.run_search", spied)
    inputs = inputs_of(tmp_path, [], rounds=1)
    labels = Labels(inputs.space.dense[None], torch.zeros(1), ["sampler"])

    class Exact(Oracle):
        predict = Quadratic(inputs.space, 0.3).predict

    for predictor in (Exact(screening=[]), inputs.train(labels).predictor):
        trained = Trained(predictor, tmp_path, "made up")
        search(inputs, labels, trained, 0.3, Stopwatch())
    assert asked == [False, True]
