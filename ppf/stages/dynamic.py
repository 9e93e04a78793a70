"""search, mode=dynamic: one agent for every ratio, from a learner and the experts it leads to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.agents import Objective
from ppf.agents.learner import Learner
from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.table import PROPOSED, Labels
from ppf.policy_search.experts import improve_along
from ppf.progress import Stopwatch, say
from ppf.ranks import on_rank_0
from ppf.space import uniform
from ppf.stages.collect import measure
from ppf.stages.objective import objective_of, region_of
from ppf.stages.policy import provenance
from ppf.stages.prepare import PruningContext
from ppf.stages.search import run_of
from ppf.stages.train import Trained, train
from ppf.threads import cpu_threads


@dataclass(frozen=True)
class Curve:
    """What the agent and uniform pruning reach at the ratios asked for, nats per token.

    Args:
        kept: the agent's policies.
        predicted: mean and standard deviation, as the agent tells them.
        measured: on the labelling part.
    """

    ratios: list[float]
    kept: Int[Tensor, "ratios sites"]
    predicted: Float[Tensor, "ratios 2"]
    measured: Float[Tensor, " ratios"]
    uniform: Int[Tensor, "ratios sites"]
    uniform_measured: Float[Tensor, " ratios"]


@dataclass(frozen=True)
class Learnt:
    """A dynamic search's result."""

    agent: RatioAgent
    curve: Curve
    history: list[dict[str, float]]


def dynamic(context: PruningContext, labels: Labels, clock: Stopwatch) -> Learnt:
    """Trains `search.rounds` times and measures some experts after each.

    A round trains the learner on random ratios of `dynamic.train`, takes its policies at
    `dynamic.knots` ratios and improves them on the predictor. A share of them, at other ratios each
    round, is measured and joins the labels; where predicted and measured agree, the trust region is
    widened. The last experts, on the last predictor, are the agent.

    Raises:
        PPFError: the agent does not learn, or a ratio of the curve lies outside `dynamic.train`.
    """
    cfg = context.cfg
    learner, (low, high) = learner_of(cfg), cfg.dynamic.train
    knots = torch.linspace(low, high, cfg.dynamic.knots, dtype=torch.double)
    knots = knots.to(context.fabric.device)
    history: list[dict[str, float]] = []
    experts: list[Int[Tensor, "knots sites"]] = []
    region = region_of(context)
    for number in range(cfg.search.rounds):
        with clock("training the predictor"):
            trained = train(context, labels, upstream=not experts)
        objective = objective_of(
            context, trained, (low + high) / 2, learner, (low, high), region.radius
        )
        say(f"Learning ratios {low} to {high}, round {number + 1} of {cfg.search.rounds}.")
        with clock("learning"), cpu_threads(learner.threads):
            proposal = _propose(context, learner, objective, trained, knots, number, history)
        with clock("improving the experts"), cpu_threads(learner.threads):
            experts.append(_improve(context, objective, knots, [proposal, *experts[-1:]]))
        chosen = experts[-1][number % cfg.dynamic.stride :: cfg.dynamic.stride].cpu()
        with clock("measuring"):
            measured = measure(context, chosen, PROPOSED)
        labels = labels.with_rows(chosen, measured.nll, PROPOSED)
        predicted = trained.predictor.predict(chosen.to(objective.device)).mean.cpu()
        error = float((predicted - measured.nll).abs().median())
        if context.fabric.broadcast(error) <= cfg.search.tolerance:
            region.grow()
    with clock("training the predictor"):
        trained = train(context, labels)
    objective = objective_of(
        context, trained, (low + high) / 2, learner, (low, high), region.radius
    )
    with clock("improving the experts"), cpu_threads(learner.threads):
        last = _improve(context, objective, knots, experts[::-1])
    agent = _agent(context, objective, knots, last)
    with clock("measuring"):
        return Learnt(agent, _curve(context, agent), history)


def learner_of(cfg: DictConfig) -> Learner:
    """The config's agent, if it can learn the ratios that it is asked for.

    Raises:
        PPFError: the agent does not learn, or a ratio of the curve lies outside `dynamic.train`.
    """
    learner = instantiate(cfg.agent)
    if not isinstance(learner, Learner):
        raise PPFError(
            f"mode=dynamic needs an agent that learns over ratios, not {type(learner).__name__}:"
            " give agent=ppo, sac, ddpg, td3 or reinforce."
        )
    low, high = cfg.dynamic.train
    outside = [ratio for ratio in cfg.ratios if not low <= ratio <= high]
    if not 0 <= low < high < 1 or outside:
        raise PPFError(
            f"ratios={outside} lie outside of dynamic.train=[{low},{high}]: widen it, as in"
            " dynamic.train=[0.02,0.6], or give other ratios."
        )
    return learner


def _propose(
    context: PruningContext,
    learner: Learner,
    objective: Objective,
    trained: Trained,
    knots: Tensor,
    number: int,
    history: list[dict[str, float]],
) -> Int[Tensor, "knots sites"]:
    """What the trained learner would do at the knots."""
    training, _ = learner.learn(objective, run_of(context, trained, history, number))
    proposal = on_rank_0(
        context.fabric, lambda: objective.policy(training.deviations(knots), knots).cpu()
    )
    return proposal.to(objective.device)


def _improve(
    context: PruningContext, objective: Objective, knots: Tensor, proposals: Sequence[Tensor]
) -> Int[Tensor, "knots sites"]:
    generator = torch.Generator(objective.device).manual_seed(context.cfg.seed)
    polish, tolerance = instantiate(context.cfg.dynamic.polish), context.cfg.dynamic.tolerance
    stacked = torch.stack(list(proposals))
    experts = on_rank_0(
        context.fabric,
        lambda: improve_along(objective, knots, stacked, polish, tolerance, generator).cpu(),
    )
    return experts.to(objective.device)


def _agent(
    context: PruningContext,
    objective: Objective,
    knots: Tensor,
    experts: Int[Tensor, "knots sites"],
) -> RatioAgent:
    dense = objective.space.dense[None].to(experts)
    kept = torch.cat([dense, experts]) if knots[0] > 0 else experts
    mean, std = objective.predictor.predict(kept)
    return RatioAgent(
        objective.space,
        torch.cat([knots.new_zeros(1), knots])[-len(kept) :].cpu(),
        kept.double().cpu(),
        mean.cpu(),
        std.cpu(),
        provenance(context),
    )


def _curve(context: PruningContext, agent: RatioAgent) -> Curve:
    ratios = list(context.cfg.ratios)
    kept = context.fabric.broadcast(torch.tensor([agent.policy(ratio) for ratio in ratios]))
    even = uniform(agent.space, torch.tensor(ratios, dtype=torch.double))
    measured = measure(context, torch.cat([kept, even]), "curve").nll
    predicted = torch.tensor([agent.predicted(ratio) for ratio in ratios])
    return Curve(ratios, kept, predicted, measured[: len(kept)], even, measured[len(kept) :])
