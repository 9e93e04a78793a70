"""mode=dynamic: one agent for every ratio, from a learner's improved policies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import THREADS, Learner, Objective, Polish, Run
from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.policy_search.curve import AgentResult, check_ratios, with_curve
from ppf.policy_search.intervals import widening
from ppf.policy_search.problem import Problem
from ppf.policy_search.trust_region import TrustRegion
from ppf.predictor.base import Trained
from ppf.progress import Stopwatch, say, track
from ppf.ranges import Count, PositiveShare, RatioInterval, Several
from ppf.ranks import on_rank_0
from ppf.space import new_policies
from ppf.threads import cpu_threads

_ACCURATE = 0.02  # largest median error after which the trust region grows, nats per token
_TOLERANCE = 0.002  # largest predicted loss above the lowest at a ratio, nats per token


@dataclass(frozen=True)
class Dynamic:
    """Rounds of training a learner on random ratios, and measuring some of its policies.

    A round trains the learner, takes its policies at `points` ratios and improves them by a local
    search on the predictor. Some of them, at other ratios in each round, are measured and join the
    labels. If predictions and measurements agree, the trust region grows. After the last round, the
    policies of all rounds are improved once more on the final predictor. They are the agent's. Its
    intervals are calibrated on the measured ones.

    Args:
        range: lowest and highest ratio that the learner is trained on.
        points: number of ratios, evenly spaced over the range, at which the agent stores a policy.
        stride: after a round, every stride-th of these policies is measured.
        polish: the local search; None: the learner's own policies are stored.
        rounds: their number.
        trust_region: largest relative deviation of a site from its uniform share in the first
            round; 1: the whole space.
        spread_penalty: see `Objective`.
    """

    range: RatioInterval
    points: Several
    stride: Count
    polish: Polish | None
    rounds: Count
    trust_region: PositiveShare
    spread_penalty: float

    def evaluations(self, rules: int, reported: int) -> int:
        """Largest number of policies that are measured; arguments as for `Static.evaluations`."""
        return self.rounds * -(-self.points // self.stride) + 2 * reported

    def search(
        self, problem: Problem, labels: Labels, trained: Trained, clock: Stopwatch
    ) -> AgentResult:
        """Searches for an agent; arguments as for `Chain.search`.

        Raises:
            PPFError: a ratio is outside of the range, or the agent learns nothing.
        """
        check_ratios(problem.ratios, self.range)
        learner = problem.agent
        if not isinstance(learner, Learner):
            raise PPFError(
                "mode=dynamic needs an agent that learns over ratios: give agent=ppo, or"
                " mode=chain for other agents."
            )
        low, high = self.range
        ratios = torch.linspace(low, high, self.points, dtype=torch.double)
        ratios = ratios.to(problem.fabric.device)
        region = TrustRegion(self.trust_region)
        found: list[Int[Tensor, "points sites"]] = []
        errors: list[Float[Tensor, " policies"]] = []
        for number in range(self.rounds):
            objective = problem.objective(trained, (low, high), region.radius, self.spread_penalty)
            say(f"Training on ratios {low} to {high}, round {number + 1} of {self.rounds}.")
            run = problem.runs.next(number)
            with clock("learning"), cpu_threads(THREADS):
                proposal = _learnt(learner, objective, run, ratios)
            with clock("improving the policies"), cpu_threads(THREADS):
                found.append(self._improved(problem, objective, ratios, [proposal, *found[-1:]]))
            own = measured_points(number, self.stride, self.points)
            chosen = new_policies(found[-1][own].cpu(), labels.kept.cpu())
            with clock("measuring"):
                measured = problem.model.measure(chosen)
            labels = labels.with_rows(chosen, measured)
            mean, std = (x.cpu() for x in trained.predictor.predict(chosen.to(objective.device)))
            error = measured - mean
            errors.append((error / std)[std > 0])
            accurate = not len(error) or float(error.abs().median()) <= _ACCURATE
            if problem.fabric.broadcast(accurate) and number + 1 < self.rounds:
                region.grow()
            with clock("training the predictor"):
                trained = problem.model.fit(labels)
        objective = problem.objective(trained, (low, high), region.radius, self.spread_penalty)
        with clock("improving the policies"), cpu_threads(THREADS):
            last = self._improved(problem, objective, ratios, found[::-1])
        factor = problem.fabric.broadcast(widening(torch.cat(errors)))
        agent = _agent(objective, ratios, last, factor)
        return with_curve(problem, agent, labels, trained, objective, clock)

    def _improved(
        self,
        problem: Problem,
        objective: Objective,
        ratios: Float[Tensor, " points"],
        proposals: Sequence[Int[Tensor, "points sites"]],
    ) -> Int[Tensor, "points sites"]:
        if self.polish is None:
            return proposals[0]
        generator = torch.Generator(objective.device).manual_seed(problem.runs.seed)
        stacked = torch.stack(list(proposals))
        polish = self.polish
        better = on_rank_0(
            problem.fabric,
            lambda: improve_along(objective, ratios, stacked, polish, generator).cpu(),
        )
        return better.to(objective.device)


def measured_points(number: int, stride: int, points: int) -> slice:
    """The ratios whose policies are measured after round `number`: every stride-th one.

    Consecutive rounds start at different ratios, so they measure different ones.
    """
    stride = min(stride, points)
    return slice(number % stride, None, stride)


def _learnt(
    learner: Learner, objective: Objective, run: Run, ratios: Float[Tensor, " points"]
) -> Int[Tensor, "points sites"]:
    """The trained learner's policies at the ratios."""
    learnt, _ = learner.learn(objective, run)
    return on_rank_0(run.fabric, lambda: learnt(ratios).cpu()).to(objective.device)


def _agent(
    objective: Objective,
    ratios: Float[Tensor, " points"],
    policies: Int[Tensor, "points sites"],
    factor: float,
) -> RatioAgent:
    kept = torch.cat([objective.space.dense[None].to(policies), policies])
    mean, std = objective.predictor.predict(kept)
    return RatioAgent(
        objective.space,
        torch.cat([ratios.new_zeros(1), ratios]).cpu(),
        kept.double().cpu(),
        mean.cpu(),
        factor * std.cpu(),
    )


def improve_along(
    objective: Objective,
    ratios: Float[Tensor, " points"],
    proposals: Int[Tensor, "proposals points sites"],
    polish: Polish,
    generator: torch.Generator,
) -> Int[Tensor, "points sites"]:
    """Finds one policy for each ratio, from the lowest ratio to the highest and back.

    The local search at a ratio starts from its proposals, the allocation rules, and the policy of
    the previous ratio. Of all policies within 0.002 nats of the best cost, the one that is most
    similar to the previous policy is chosen. Interpolated policies then resemble both neighbours.

    Args:
        ratios: ascending.
        proposals: starting policies, several for each ratio.
        polish: local search on the predictor.
    """
    policies = proposals[0].clone()
    there, before = list(range(len(ratios))), policies[0]
    for place in track([*there, *there[::-1]], "Improving the policy of each ratio"):
        here = objective.at(float(ratios[place]))
        scaled = here.project(here.moved(before), here.ratios(1))
        own = torch.cat([policies[place][None], proposals[:, place], scaled])
        start = here.candidates(torch.cat([own, here.starts(), here.rule_policies()]))
        found = polish.improve(here, start, generator)
        good = found.kept[found.cost <= found.cost[0] + _TOLERANCE]
        policies[place] = before = good[(good - scaled).abs().sum(1).argmin()]
    return policies
