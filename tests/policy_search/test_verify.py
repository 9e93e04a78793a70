from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppf.agents import Candidates
from ppf.errors import PPFError
from ppf.policy_search.verify import Verification, predict, verify
from ppf.pruning.allocation import ObsGlobal, Uniform
from tests.agents.synthetic import Quadratic, quadratic
from tests.ranks import FakeRanks


def candidates(count: int = 3) -> Candidates:
    objective = quadratic()
    deviation = torch.randn(count, len(objective.space), generator=torch.Generator().manual_seed(0))
    return objective.candidates(objective.policy(deviation, objective.ratios(count)))


def test_uniform_is_measured_first_and_once() -> None:
    objective, asked = quadratic(), []

    def measure(kept: Tensor) -> Tensor:
        asked.append(kept)
        return torch.arange(len(kept), 0, -1.0)

    proposed = Candidates.merge(candidates(), objective.candidates(objective.uniform()))
    verified = verify(predict(proposed, objective), measure, 0.3)
    assert len(asked) == 1 and len(asked[0]) == 4
    assert torch.equal(verified.kept[:1], objective.uniform())
    assert verified.measured[3] == 1
    expected = objective.predictor.predict(verified.kept)
    assert torch.equal(verified.mean, expected.mean) and torch.equal(verified.std, expected.std)


def test_rules_are_measured_too_and_named() -> None:
    objective = replace(quadratic(), rules={"even": Uniform(), "obs_global": ObsGlobal()})
    verified = verify(
        predict(candidates(), objective), lambda kept: torch.arange(len(kept)) + 1.0, 0.3
    )
    assert verified.names == (("uniform", "even"), ("obs_global",), *[("candidate",)] * 3)
    assert torch.equal(verified.kept[1:2], objective.rule_policies()[1:])
    merged = Verification.merge([verified, verified])
    assert merged.names == verified.names and torch.equal(merged.measured, verified.measured)


def test_a_policy_that_several_propose_is_measured_once_and_has_all_names() -> None:
    objective, asked = replace(quadratic(), rules={"obs_global": ObsGlobal()}), []

    def measure(kept: Tensor) -> Tensor:
        asked.extend(kept.tolist())
        return torch.arange(len(kept)) + 1.0

    rule = objective.candidates(objective.rule_policies())
    first = verify(predict(rule, objective), measure, 0.3)
    assert first.names == (("uniform",), ("obs_global", "candidate")) and len(asked) == 2
    assert first.proposed.tolist() == [False, False]
    known = replace(first, names=(("uniform",), ("candidate",)))
    merged = Verification.merge([known, first])
    assert merged.names[1] == ("candidate", "obs_global") and merged.proposed[1]


def test_all_ranks_use_the_policies_and_predictions_of_rank_0() -> None:
    sent, asked = list[object](), list[Tensor]()

    def verified(rank: int, count: int, ratio: float) -> Verification:
        objective = replace(quadratic(), predictor=Quadratic(quadratic().space, ratio))
        return verify(predict(candidates(count), objective, FakeRanks(rank, sent)), measure, ratio)

    def measure(kept: Tensor) -> Tensor:
        asked.append(kept)
        return torch.arange(len(kept)) + 1.0

    first, second = verified(0, 3, 0.3), verified(1, 2, 0.5)  # rank 1 computes otherwise
    assert torch.equal(*asked)
    assert first.names == second.names
    assert torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)


def test_no_finite_measurement_is_an_error() -> None:
    broken = torch.tensor([torch.nan, torch.inf, torch.nan, torch.inf])
    with pytest.raises(PPFError, match="ratio=0.3: give a smaller ratio"):
        verify(predict(candidates(), quadratic()), lambda kept: broken, 0.3)
