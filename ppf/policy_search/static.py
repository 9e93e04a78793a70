"""mode=static: the policy of lowest perplexity at one ratio, found in rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ppf.agents import Candidates
from ppf.labels.table import Labels
from ppf.policy_search.intervals import calibrated, promised_gain
from ppf.policy_search.problem import Problem
from ppf.policy_search.runner import run_search
from ppf.policy_search.selection import Selection, select
from ppf.policy_search.trust_region import TrustRegion
from ppf.policy_search.verify import Verification, predict, verify
from ppf.predictor.base import Trained
from ppf.predictor.scores import NOMINAL
from ppf.progress import Stopwatch, say
from ppf.ranges import Count, Natural, PositiveShare, Share
from ppf.ranks import on_rank_0
from ppf.records.policy import read_policy
from ppf.space import new_policies, project

_STARTS = 16  # best measured policies from which a round's search starts


@dataclass(frozen=True)
class PolicyResult:
    """The result of a search at one ratio.

    Args:
        trained: the last round's predictor.
        measured: policies measured at this ratio in all rounds, uniform first; each prediction
            was made before the policy was measured.
        history: rows of the agent's metrics, over all rounds.
        eligible: whether each policy can be the result.
        rounds: number of the round in which each policy was measured.
        promised: if the search ended before its last round: the share by which the next proposals
            could lower the perplexity, by their 90 % intervals.
        selection: the best policies on both parts; None: not measured on the selection part.
    """

    trained: Trained
    measured: Verification
    history: list[dict[str, float]]
    eligible: Bool[Tensor, " n"]
    rounds: Int[Tensor, " n"]
    promised: float | None = None
    selection: Selection | None = None

    @property
    def best(self) -> int:
        """Row of the eligible policy with the lowest loss on labelling and selection part together.

        The labelling part alone has few windows, so its minimum is often due to chance. Choosing
        among a few policies biases the loss on the selection part by far less than its standard
        error.
        """
        if self.selection:
            return self.selection.best
        losses = self.measured.measured.nan_to_num(torch.inf).tolist()
        return min(self.eligible.nonzero()[:, 0].tolist(), key=losses.__getitem__)

    @property
    def kept(self) -> list[int]:
        """The policy that was found."""
        return self.measured.kept[self.best].tolist()

    @property
    def nll(self) -> float:
        """Its measured log-perplexity on the labelling part, nats per token."""
        return float(self.measured.measured[self.best])


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Rounds of searching on the predictor, measuring the best policies, and fitting it again.

    The measured policies of a round join the labels that the next predictor is fitted to. Intervals
    are calibrated on the proposals of earlier rounds. The trust region around uniform pruning grows
    after a round with enough measurements inside their intervals. Sites of proposals keep at least
    half of the fewest units that they kept in policies no worse than uniform pruning: further away,
    predictions are guesses, and an emptied site can break a model.

    Args:
        rounds: largest number of rounds.
        top_k: proposed policies that a round measures, besides uniform pruning and the rules.
        selection_windows: windows of the selection part; 0: there is none.
        trust_region: largest relative deviation of a site from its uniform share in the first
            round; 1: the whole space.
        spread_penalty: see `Objective`.
        least_gain: the search ends when the 90 % intervals of all next proposals are above the best
            measured perplexity times 1 minus this share; None: it makes all rounds.
    """

    rounds: Count
    top_k: Count
    selection_windows: Natural
    trust_region: PositiveShare
    spread_penalty: float
    least_gain: Share | None

    @property
    def proposals(self) -> int:
        """Largest number of proposed policies that are measured."""
        return self.rounds * self.top_k

    def at(
        self,
        ratio: float,
        problem: Problem,
        labels: Labels,
        trained: Trained,
        clock: Stopwatch,
        start: Int[Tensor, " sites"] | None = None,
        *,
        measure_start: bool = False,
        proposals_only: bool = False,
    ) -> PolicyResult:
        """Searches at one ratio.

        Args:
            ratio: share of the budget's cost to save.
            labels: measured policies, the dense one first.
            trained: predictor that is fitted to them.
            clock: measures the time of each part.
            start: a policy from which the first round also starts, scaled to the ratio.
            measure_start: the first round also measures it; it counts as a proposal.
            proposals_only: see `Static`.

        Raises:
            PPFError: no measured loss is finite, or only proposals can be the result and there is
                none.
        """
        agent, region = problem.agent, TrustRegion(self.trust_region)
        count = 1 if agent.baseline else self.rounds
        done, promised = list[Verification](), None
        for number in range(count):
            say(
                f"Searching at ratio {ratio} with {type(agent).__name__},"
                f" round {number + 1} of at most {count}."
            )
            with clock("searching on the predictor"):
                objective = problem.objective(
                    trained, (ratio, ratio), region.radius, self.spread_penalty
                )
                known, given = objective.baselines(), None  # they are measured in any case
                useful = objective.uniform()
                if done:
                    measured = Verification.merge(done)
                    known = measured.by_loss()
                    good = measured.kept[measured.measured <= measured.measured[0]]
                    useful = torch.cat([useful, good])
                    objective = replace(objective, measured=known[:_STARTS])
                elif start is not None:
                    wanted, ratios = objective.moved(start), objective.ratios(1)
                    objective = replace(objective, measured=objective.project(wanted, ratios))
                    given = project(objective.space, wanted, ratios)  # maybe outside of the region
                    useful = torch.cat([useful, given])
                if apart := not getattr(trained.predictor, "exact", False):
                    objective = replace(objective, least=useful.min(0).values // 2)
                run = problem.runs.next(number)
                found = run_search(agent, objective, run, self.top_k, known, apart=apart)
                if given is not None and measure_start:
                    new = objective.candidates(new_policies(given, known))
                    found = Candidates.merge(found.best(self.top_k - 1), new)
            with clock("measuring the best"):
                predicted = predict(found.best(self.top_k), objective, problem.fabric)
                if not done:
                    _say_predicted(predicted, float(labels.nll[0]))
                elif self.least_gain is not None:
                    gain = promised_gain(done, predicted)
                    if gain < self.least_gain:
                        promised = gain
                        break
                done.append(verify(predicted, problem.model.measure, ratio))
                _say_measured(Verification.merge(done))
            if number + 1 == count:
                break
            region.update(calibrated(done)[-1])
            labels = labels.with_rows(done[-1].kept.cpu(), done[-1].measured.cpu())
            with clock("training the predictor"):
                trained = problem.model.fit(labels)
        measured = Verification.merge(calibrated(done))
        eligible = measured.eligible(proposals_only or agent.baseline)
        rounds = torch.tensor([_round(done, kept) for kept in measured.kept])
        result = PolicyResult(trained, measured, problem.runs.history, eligible, rounds, promised)
        with clock("measuring the best on the selection part"):
            if not (by_window := problem.model.selection(self.selection_windows)):
                say("The best policies are not measured on a selection part: it has no windows.")
                return result
            choose = partial(select, measured, eligible, by_window)
            return replace(result, selection=on_rank_0(problem.fabric, choose))


def _round(done: Sequence[Verification], kept: Int[Tensor, " sites"]) -> int:
    """Number of the round that measured the policy first."""
    return next(i for i, one in enumerate(done) if (one.kept == kept).all(1).any())


def _say_predicted(predicted: Verification, dense: float) -> None:
    """Says what the first round expects, before anything is measured."""
    lowest = int(predicted.mean.argmin())
    mean, std = predicted.mean[lowest], predicted.std[lowest]
    if std > 0:
        low, high = ((mean + sign * NOMINAL * std).clamp_min(dense).exp() for sign in (-1, 1))
        say(
            f"Predicted without measurements: perplexity {mean.exp():.4g} ({low:.4g} to"
            f" {high:.4g} with 90 % probability). The dense model has {math.exp(dense):.4g}."
        )


def _say_measured(measured: Verification) -> None:
    uniform, *_ = perplexities = measured.measured.exp()  # may be infinite
    best = perplexities.nan_to_num(torch.inf).min()
    say(f"Lowest measured perplexity: {best:.4g}. Uniform pruning: {uniform:.4g}.")


@dataclass(frozen=True, kw_only=True)
class Static(Rounds):
    """The policy of lowest perplexity at one ratio; further arguments are those of `Rounds`.

    Args:
        proposals_only: the result is a policy that the search proposed, even if uniform pruning or
            a rule is better.
        start: path of a policy.json from which the first round also starts; None: there is none.
    """

    proposals_only: bool
    start: str | None

    def evaluations(self, rules: int, reported: int) -> int:
        """Largest number of policies that a search measures, besides the labels before it.

        Args:
            rules: number of allocation rules besides uniform pruning.
            reported: number of ratios at which an agent is measured in the end; not read.
        """
        return 1 + rules + self.proposals

    def search(
        self, problem: Problem, labels: Labels, trained: Trained, clock: Stopwatch
    ) -> PolicyResult:
        """Searches at the problem's ratio; arguments and errors as for `Rounds.at`.

        Raises:
            PPFError: `start` is of another space.
        """
        (ratio,) = problem.ratios
        at = partial(self.at, ratio, problem, labels, trained, clock)
        if not self.start:
            return at(proposals_only=self.proposals_only)
        record = read_policy(self.start, problem.trusted)
        if record.get("selection"):
            say(
                "The policy of search.start was chosen with the help of a selection part. If it is"
                " the result, its perplexity on that part may be too low."
            )
        start = torch.tensor(problem.space.policy(record["kept"], record["units"]))
        return at(start, measure_start=True, proposals_only=self.proposals_only)
