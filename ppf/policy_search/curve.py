"""The result of a search for all ratios: the agent, measured at several ratios."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Objective
from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.policy_search.problem import Problem
from ppf.predictor.base import Trained
from ppf.progress import Stopwatch
from ppf.space import uniform


@dataclass(frozen=True)
class Curve:
    """Losses of the agent and of uniform pruning at the requested ratios, nats per token.

    Args:
        kept: the agent's policies.
        predicted: mean and standard deviation of the agent's predictions.
        measured: on the labelling part.
    """

    ratios: list[float]
    kept: Int[Tensor, "ratios sites"]
    predicted: Float[Tensor, "ratios 2"]
    measured: Float[Tensor, " ratios"]
    uniform: Int[Tensor, "ratios sites"]


@dataclass(frozen=True)
class AgentResult:
    """The result of a search for all ratios.

    Args:
        agent: the agent for every ratio.
        curve: its losses.
        labels: all policies measured on the real model, those of the curve included.
        trained: the last predictor.
        history: rows of the agent's or learner's metrics, over all rounds.
        objective: with a predictor that is valid at all ratios; None: it is not.
    """

    agent: RatioAgent
    curve: Curve
    labels: Labels
    trained: Trained
    history: list[dict[str, float]]
    objective: Objective | None

    @property
    def nll(self) -> float:
        """Mean measured log-perplexity along the curve, nats per token."""
        return float(self.curve.measured.mean())


def check_ratios(ratios: Sequence[float], interval: Sequence[float]) -> None:
    """Raises PPFError before a search if its agent could not be measured at some ratios after it.

    Args:
        interval: lowest and highest ratio of the search.
    """
    low, high = interval
    if outside := [ratio for ratio in ratios if not low <= ratio <= high]:
        raise PPFError(
            f"ratios={outside} lie outside of search.range=[{low},{high}]: give other ratios, or a"
            " wider search.range."
        )


def with_curve(
    problem: Problem,
    agent: RatioAgent,
    labels: Labels,
    trained: Trained,
    objective: Objective | None,
    clock: Stopwatch,
) -> AgentResult:
    """Measures the agent's policies and uniform pruning at the problem's ratios.

    Args:
        agent, trained, objective: as for `AgentResult`.
        labels: all policies measured before.
        clock: measures the time of each part.
    """
    ratios = list(problem.ratios)
    kept = problem.fabric.broadcast(torch.tensor([agent.policy(ratio) for ratio in ratios]))
    even = uniform(agent.space, torch.tensor(ratios, dtype=torch.double))
    with clock("measuring"):
        measured, of_even = problem.model.measure(torch.cat([kept, even])).split(len(kept))
    predicted = torch.tensor([agent.predicted(ratio) for ratio in ratios])
    curve = Curve(ratios, kept, predicted, measured, even)
    labels = labels.with_rows(kept, measured).with_rows(even, of_even)
    return AgentResult(agent, curve, labels, trained, problem.runs.history, objective)
