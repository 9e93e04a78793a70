"""mode=chain: one agent for every ratio, from a search at each of several ratios."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.policy_search.curve import AgentResult, check_ratios, with_curve
from ppf.policy_search.problem import Problem
from ppf.policy_search.static import PolicyResult, Rounds
from ppf.predictor.base import Trained
from ppf.progress import Stopwatch
from ppf.ranges import RatioInterval, Several


@dataclass(frozen=True, kw_only=True)
class Chain(Rounds):
    """Searches at several ratios, the highest first; the agent interpolates between their results.

    Each search also starts from the policy found at the ratio before, scaled to its own. Its
    predictor is fitted to everything measured so far. Only the first search measures the allocation
    rules, and starts from them. At the searched ratios the agent predicts the measured losses.

    `ExpectedLoss` computes gradients at the measured policy of lowest loss. Ratios fall from search
    to search, so after the first round of a search this is usually one of its own policies.

    Further arguments are those of `Rounds`, for each search.

    Args:
        range: lowest and highest ratio of the searches.
        points: number of searches, evenly spaced over the range.
    """

    range: RatioInterval
    points: Several

    @property
    def ratios(self) -> Float[Tensor, " points"]:
        """The ratios of the searches, ascending."""
        low, high = self.range
        ratios = torch.linspace(low, high, self.points, dtype=torch.double)
        ratios[1:-1] = ratios[1:-1].round(decimals=6)  # so that ratio=0.15 is one of them
        return ratios

    def evaluations(self, rules: int, reported: int) -> int:
        """Largest number of policies that are measured; arguments as for `Static.evaluations`."""
        return self.points * (1 + self.proposals) + rules + 2 * reported

    def search(
        self, problem: Problem, labels: Labels, trained: Trained, clock: Stopwatch
    ) -> AgentResult:
        """Searches for an agent, and measures it at the problem's ratios.

        Args:
            labels, trained, clock: as for `Rounds.at`.

        Raises:
            PPFError: a ratio is outside of the range, or no policy at a ratio has a finite loss.
        """
        check_ratios(problem.ratios, self.range)
        found: list[PolicyResult] = []
        for ratio in self.ratios.flip(0).tolist():
            here, start = problem, None
            if found:
                here, start = replace(problem, rules={}), torch.tensor(found[-1].kept)
                with clock("training the predictor"):
                    trained = problem.model.fit(labels)
            latest = self.at(ratio, here, labels, trained, clock, start)
            if not math.isfinite(latest.nll):
                raise PPFError(f"no policy at ratio={ratio} has a finite loss: lower search.range.")
            known = latest.measured
            labels = labels.with_rows(known.kept.cpu(), known.measured.cpu())
            found.append(latest)
        rows = [(problem.space.dense.tolist(), float(labels.nll[0]), 0.0)]
        rows += [(f.kept, f.nll, float(f.measured.std[f.best])) for f in reversed(found)]
        kept, mean, std = zip(*rows, strict=True)
        agent = RatioAgent(
            problem.space,
            torch.cat([torch.zeros(1, dtype=torch.double), self.ratios]),
            torch.tensor(kept, dtype=torch.double),
            torch.tensor(mean),
            torch.tensor(std),
        )
        return with_curve(problem, agent, labels, latest.trained, None, clock)
