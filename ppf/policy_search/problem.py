"""What every mode of a search works with: the problem, the real model, and the agent's runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning import Fabric
from torch import Tensor

from ppf.agents import Agent, Objective, Run
from ppf.labels.labelling import Labelling
from ppf.labels.table import PROPOSED, Labels
from ppf.policy_search.selection import MeasureWindows, selection_part
from ppf.policy_search.verify import Measure
from ppf.predictor.base import Trained
from ppf.pruning import Allocation, SiteFeatures
from ppf.space import Space


class AgentRuns:
    """Seeds and logs of an agent's runs, over all rounds of a search.

    Args:
        fabric: the processes that share the search.
        seed: of the first round of a search at one ratio.

    Attributes:
        history: rows of the agent's metrics, over all rounds.
    """

    def __init__(self, fabric: Fabric, seed: int) -> None:
        self.fabric, self.seed, self.history = fabric, seed, list[dict[str, float]]()
        self._learnt: dict[str, dict[str, Any]] = {}  # networks of the round before
        self._rounds = 0

    def next(self, number: int) -> Run:
        """The run of the next round, which is number `number` of its search, from 0."""
        first = int(self.history[-1]["step"]) + 1 if self.history else 0  # steps go on
        self._rounds = counted = self._rounds + 1

        def report(step: int, metrics: Mapping[str, Tensor | float]) -> None:
            row = {name: float(value) for name, value in metrics.items()} | {"round": counted}
            logged = {f"search/{name}": value for name, value in row.items()}
            self.fabric.log_dict(logged, first + step)
            self.history.append({"step": first + step, **row})

        return Run(self.fabric, report, self.seed + number, self._learnt)


@dataclass(frozen=True)
class RealModel:
    """What a search asks of the real model.

    Args:
        measure: log-perplexity of policies on the labelling part, nats per token.
        selection: gives a function that measures policies in each window of the labelling and of a
            selection part with so many windows; None: there are no such windows.
        fit: fits a predictor to labels.
    """

    measure: Measure
    selection: Callable[[int], MeasureWindows | None]
    fit: Callable[[Labels], Trained]

    @classmethod
    def of(cls, labelling: Labelling, fit: Callable[[Labels], Trained]) -> "RealModel":
        """The labelling's model."""
        part = partial(selection_part, labelling)
        return cls(lambda kept: labelling.measure(kept, PROPOSED).nll, part, fit)


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Args:
        agent: searches on the predictor.
        features: of the sites; their space is that of the policies.
        rules: allocation rules by name; the first round measures and starts from their policies.
        ratios: that were asked for; one in mode=static.
        model: the real model.
        runs: of the agent.
        trusted: classes of the user's own that a policy.json may name.
    """

    agent: Agent
    features: SiteFeatures
    rules: Mapping[str, Allocation]
    ratios: Sequence[float]
    model: RealModel
    runs: AgentRuns
    trusted: Sequence[str] = ()

    @property
    def fabric(self) -> Fabric:
        """The processes that share the search."""
        return self.runs.fabric

    @property
    def space(self) -> Space:
        """The sites, with the prices of the search's budget."""
        return self.features.space

    def objective(
        self, trained: Trained, interval: tuple[float, float], radius: float, spread_penalty: float
    ) -> Objective:
        """The objective of a round; the arguments are those of `Objective`."""
        return Objective(
            self.features,
            self.rules,
            trained.predictor,
            interval,
            spread_penalty,
            radius,
            self.fabric.device,
        )
