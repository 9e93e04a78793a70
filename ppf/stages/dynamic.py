"""search, mode=dynamic: one agent for every ratio, from a learner's improved policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.agents import Agent, Objective, Run
from ppf.agents.base import THREADS
from ppf.agents.learner import Learner
from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.table import PROPOSED, Labels
from ppf.progress import Stopwatch, say
from ppf.ranks import on_rank_0
from ppf.search.experts import improve_along, measured_experts
from ppf.search.intervals import widening
from ppf.space import new_policies, uniform
from ppf.stages.fit import Trained
from ppf.stages.search_inputs import SearchInputs
from ppf.threads import cpu_threads


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
    uniform_measured: Float[Tensor, " ratios"]


@dataclass(frozen=True)
class Course:
    """Metrics and last predictor of the search that made an agent.

    Args:
        history: rows of the metrics of learner or searches, over all rounds.
        trained: the last predictor.
        everywhere: whether the last predictor is valid at all ratios; False: only at the last one.
    """

    history: list[dict[str, float]]
    trained: Trained
    everywhere: bool


@dataclass(frozen=True)
class FoundAgent:
    """The result of a search for all ratios.

    Args:
        agent: the agent for every ratio.
        curve: its losses.
        labels: all policies measured on the real model, those of the curve included.
        course: how the agent came about.
    """

    agent: RatioAgent
    curve: Curve
    labels: Labels
    course: Course


def dynamic(
    inputs: SearchInputs,
    labels: Labels,
    trained: Trained,
    settings: DictConfig,
    ratios: Sequence[float],
    provenance: Mapping[str, Any],
    clock: Stopwatch,
) -> FoundAgent:
    """Trains `search.rounds` times and measures some experts after each.

    A round trains the learner on random ratios of `dynamic.train`, takes its policies at
    `dynamic.knots` ratios and improves them on the predictor: the experts. Some of them, at other
    ratios in each round, are measured and join the labels. If predictions and measurements agree,
    the trust region is widened. After the last round, the experts of all rounds are improved once
    more on the final predictor. They are the agent's policies. Its intervals are calibrated on the
    measured experts.

    Args:
        inputs: their agent is a `Learner` (see `check_dynamic`).
        labels: measured policies, the dense one first.
        trained: predictor that is fitted to them.
        settings: section `dynamic` of the config.
        ratios: of the curve that is measured in the end.
        provenance: what agent.json records of the model.
        clock: measures the time of each part.
    """
    low, high = settings.train
    knots = torch.linspace(low, high, settings.knots, dtype=torch.double)
    knots = knots.to(inputs.fabric.device)
    history: list[dict[str, float]] = []
    experts: list[Int[Tensor, "knots sites"]] = []
    errors: list[Float[Tensor, " policies"]] = []
    region, rounds = inputs.region(), inputs.settings.rounds
    for number in range(rounds):
        objective = inputs.objective(trained, region.radius, low, high)
        say(f"Training on ratios {low} to {high}, round {number + 1} of {rounds}.")
        run = inputs.run(trained, None, history, number)
        with clock("learning"), cpu_threads(THREADS):
            proposal = _propose(inputs.agent, objective, run, knots)
        with clock("improving the experts"), cpu_threads(THREADS):
            experts.append(_improve(inputs, objective, settings, knots, [proposal, *experts[-1:]]))
        own = measured_experts(number, settings.stride, settings.knots)
        chosen = new_policies(experts[-1][own].cpu(), labels.kept.cpu())
        with clock("measuring"):
            measured = inputs.measure(chosen)
        labels = labels.with_rows(chosen, measured, PROPOSED)
        mean, std = (x.cpu() for x in trained.predictor.predict(chosen.to(objective.device)))
        error = measured - mean
        errors.append((error / std)[std > 0])
        accurate = not len(error) or float(error.abs().median()) <= inputs.settings.tolerance
        if inputs.fabric.broadcast(accurate) and number + 1 < rounds:
            region.grow()
        with clock("training the predictor"):
            trained = inputs.train(labels)
    objective = inputs.objective(trained, region.radius, low, high)
    with clock("improving the experts"), cpu_threads(THREADS):
        last = _improve(inputs, objective, settings, knots, experts[::-1])
    factor = inputs.fabric.broadcast(widening(torch.cat(errors)))
    agent = _agent(objective, knots, last, factor, provenance)
    return with_curve(inputs, agent, ratios, labels, Course(history, trained, True), clock)


def with_curve(
    inputs: SearchInputs,
    agent: RatioAgent,
    ratios: Sequence[float],
    labels: Labels,
    course: Course,
    clock: Stopwatch,
) -> FoundAgent:
    """Measures the agent's policies and uniform pruning; arguments as for `dynamic`, `FoundAgent`.

    Args:
        labels: all policies measured before.
    """
    with clock("measuring"):
        curve = _curve(inputs, agent, ratios)
    labels = labels.with_rows(curve.kept, curve.measured, PROPOSED)
    labels = labels.with_rows(curve.uniform, curve.uniform_measured, PROPOSED)
    return FoundAgent(agent, curve, labels, course)


def check_dynamic(cfg: DictConfig) -> None:
    """Raises PPFError if the config's agent is not a learner."""
    learner = instantiate(cfg.agent)
    if not isinstance(learner, Learner):
        raise PPFError(
            f"mode=dynamic needs an agent that learns over ratios, not {type(learner).__name__}:"
            " give agent=ppo or agent=reinforce, or mode=chain for other agents."
        )


def check_ratios(cfg: DictConfig) -> None:
    """Raises PPFError if a ratio of the curve lies outside `dynamic.train`."""
    low, high = cfg.dynamic.train
    if low == high:
        raise PPFError(f"dynamic.train=[{low},{high}] is one ratio: give two different ones.")
    if outside := [ratio for ratio in cfg.ratios if not low <= ratio <= high]:
        wide = min(low, *outside), max(high, *outside)
        raise PPFError(
            f"ratios={outside} lie outside of dynamic.train=[{low},{high}]: widen it, as in"
            f" dynamic.train=[{wide[0]},{wide[1]}], or give other ratios."
        )


def _propose(
    learner: Agent, objective: Objective, run: Run, knots: Float[Tensor, " knots"]
) -> Int[Tensor, "knots sites"]:
    """The trained learner's policies at the knots."""
    assert isinstance(learner, Learner)
    training, _ = learner.learn(objective, run)
    proposal = on_rank_0(
        run.fabric, lambda: objective.policy(training.deviations(knots), knots).cpu()
    )
    return proposal.to(objective.device)


def _improve(
    inputs: SearchInputs,
    objective: Objective,
    settings: DictConfig,
    knots: Float[Tensor, " knots"],
    proposals: Sequence[Int[Tensor, "knots sites"]],
) -> Int[Tensor, "knots sites"]:
    generator = torch.Generator(objective.device).manual_seed(inputs.seed)
    polish, stacked = instantiate(settings.polish), torch.stack(list(proposals))
    experts = on_rank_0(
        inputs.fabric,
        lambda: improve_along(
            objective, knots, stacked, polish, settings.tolerance, generator
        ).cpu(),
    )
    return experts.to(objective.device)


def _agent(
    objective: Objective,
    knots: Float[Tensor, " knots"],
    experts: Int[Tensor, "knots sites"],
    factor: float,
    provenance: Mapping[str, Any],
) -> RatioAgent:
    dense = objective.space.dense[None].to(experts)
    kept = torch.cat([dense, experts])
    mean, std = objective.predictor.predict(kept)
    return RatioAgent(
        objective.space,
        torch.cat([knots.new_zeros(1), knots]).cpu(),
        kept.double().cpu(),
        mean.cpu(),
        factor * std.cpu(),
        dict(provenance),
    )


def _curve(inputs: SearchInputs, agent: RatioAgent, ratios: Sequence[float]) -> Curve:
    kept = inputs.fabric.broadcast(torch.tensor([agent.policy(ratio) for ratio in ratios]))
    even = uniform(agent.space, torch.tensor(ratios, dtype=torch.double))
    measured = inputs.measure(torch.cat([kept, even]))
    predicted = torch.tensor([agent.predicted(ratio) for ratio in ratios])
    return Curve(list(ratios), kept, predicted, measured[: len(kept)], even, measured[len(kept) :])
