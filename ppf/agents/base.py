"""The interface of agents: the objective, the run, and the candidates that a search returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from lightning import Fabric
from torch import Tensor

from ppf.predictor.protocol import Surrogate
from ppf.pruning import Allocation, SiteFeatures
from ppf.space import Space, project, uniform

ELITES = 256
"""Best policies that a search keeps, and that each rank contributes to the result."""
THREADS = 1
"""CPU threads of agents; more do not help, since the tensors are small."""
Report = Callable[[int, Mapping[str, Tensor | float]], None]
"""Logs the metrics of a step; tensors stay on their device, so that only the logger waits."""


@dataclass(frozen=True)
class Objective:
    """The cost that a search minimises, and the trust region around uniform pruning.

    Args:
        features: features of the sites; their space has the budget that policies must meet.
        rules: allocation rules by name; searches also start from their policies.
        predictor: predicts the log-perplexity of policies.
        interval: lowest and highest ratio that a learner trains on; equal for a single ratio.
        spread_penalty: multiple of the predicted standard deviation that is added to a policy's
            cost.
        trust_region: largest deviation of a site from its uniform share, relative to that share;
            1: the whole space.
            Each site may move by at least one unit; otherwise a site of few KV groups could not
            change.
        device: device of policies, predictions and agents.
        measured: policies from which searches also start: the best measured ones of earlier rounds,
            or a given one; None: no others.
        least: fewest units that a site may keep; None: 0.
    """

    features: SiteFeatures
    rules: Mapping[str, Allocation]
    predictor: Surrogate
    interval: tuple[float, float]
    spread_penalty: float
    trust_region: float
    device: torch.device
    measured: Int[Tensor, "measured sites"] | None = None
    least: Int[Tensor, " sites"] | None = None

    @property
    def space(self) -> Space:
        """The sites, with the prices of the budget."""
        return self.features.space

    @property
    def ratio(self) -> float:
        """Share of the budget's cost that policies must save: the middle of the interval."""
        return sum(self.interval) / 2

    def at(self, ratio: float) -> "Objective":
        """This objective at another ratio."""
        return replace(self, interval=(ratio, ratio))

    def cost(self, kept: Int[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Predicted log-perplexity plus the penalty on its standard deviation, nats per token."""
        mean, std = self.predictor.predict(kept)
        return mean + self.spread_penalty * std

    def gain(
        self, cost: Float[Tensor, " batch"], ratio: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Predicted log-perplexity of uniform pruning minus the cost, nats per token.

        It is limited to ±20, since predictor=oracle may measure infinite losses; NaN counts as
        -20.
        """
        gain = self.predictor.predict(uniform(self.space, ratio)).mean - cost
        return gain.nan_to_num(-_LARGEST_GAIN).clamp(-_LARGEST_GAIN, _LARGEST_GAIN)

    def ratios(self, batch: int) -> Float[Tensor, " batch"]:
        """The objective's ratio, repeated for each policy."""
        return torch.full((batch,), self.ratio, dtype=torch.double, device=self.device)

    def region(
        self, ratio: Float[Tensor, " batch"]
    ) -> tuple[
        Float[Tensor, "batch sites"], Float[Tensor, "batch sites"], Float[Tensor, "batch sites"]
    ]:
        """Kept units: lower end of the trust region, uniform pruning, and upper end."""
        units = self.space.units.to(ratio.device).double()
        share = self.space.shares(ratio)
        reach = (self.trust_region * share).clamp_min(1)
        upper = units.expand_as(share)
        if self.trust_region < 1:
            upper = torch.minimum((share + reach).ceil(), upper)
        lower = (share - reach).floor().clamp_min(0)
        if self.least is not None:
            lower = torch.maximum(lower, self.least.to(lower))
        free = self.space.cost.to(ratio.device) == 0  # sites without a cost stay whole
        return lower.where(~free, units), share, upper

    def project(
        self, wanted: Float[Tensor, "batch sites"], ratio: Float[Tensor, " batch"]
    ) -> Int[Tensor, "batch sites"]:
        """The policies nearest to `wanted` that meet the budget inside the trust region."""
        lower, _, upper = self.region(ratio)
        return project(self.space, wanted, ratio, (lower.long(), upper.long()))

    def policy(
        self, deviation: Float[Tensor, "batch sites"], ratio: Float[Tensor, " batch"]
    ) -> Int[Tensor, "batch sites"]:
        """Policies for deviations from uniform pruning, projected to the budget.

        Args:
            deviation: -1: lower end of the trust region; 0: uniform share; 1: upper end.
        """
        return self.project(within(deviation, *self.region(ratio)), ratio)

    def uniform(self) -> Int[Tensor, "1 sites"]:
        """The uniform policy at the objective's ratio."""
        return uniform(self.space, self.ratios(1))

    def rule_policies(self) -> Int[Tensor, "rules sites"]:
        """The policies of the allocation rules; they may lie outside the trust region."""
        ratio, none = self.ratios(1), self.space.dense.to(self.device)[None][:0]
        found = [rule.policies(self.features, ratio) for rule in self.rules.values()]
        return torch.cat([none, *found])

    def baselines(self) -> Int[Tensor, "baselines sites"]:
        """Uniform pruning and the policies of the allocation rules."""
        return torch.cat([self.uniform(), self.rule_policies()])

    def starts(self) -> Int[Tensor, "starts sites"]:
        """Policies inside the trust region from which searches start.

        These are uniform pruning, for each kind of site the policy that prunes this kind least,
        the allocation rules' policies, and the best measured ones.
        """
        ratio, units = self.ratios(1), self.space.units.to(self.device)
        spared = [self.space.of_kind(kind).to(self.device) for kind in self.space.kinds]
        share = self.space.shares(ratio)
        sparing = [torch.where(mask, 2.0 * units, share) for mask in spared]
        measured = share[:0] if self.measured is None else self.measured.to(share)
        wanted = torch.cat([*sparing, self.rule_policies().to(share), measured])
        return torch.cat([self.uniform(), self.project(wanted, self.ratios(len(wanted)))])

    def moved(self, kept: Int[Tensor, " sites"]) -> Float[Tensor, "1 sites"]:
        """The policy of a neighbouring ratio; what each site removes is scaled to this ratio."""
        units, kept = self.space.units.to(self.device).double(), kept.to(self.device)
        scale = self.ratio / self.space.saved(kept).clamp_min(_LEAST)
        return (units - (units - kept) * scale)[None]

    def candidates(self, kept: Int[Tensor, "batch sites"]) -> "Candidates":
        """The policies with their costs, distinct and best first."""
        kept = kept.unique(dim=0)  # an oracle measures each of them
        return Candidates(kept, self.cost(kept).nan_to_num(torch.inf)).sorted()


def within(
    deviation: Float[Tensor, "batch sites"],
    lower: Float[Tensor, "batch sites"],
    share: Float[Tensor, "batch sites"],
    upper: Float[Tensor, "batch sites"],
) -> Float[Tensor, "batch sites"]:
    """Kept units for deviations: `lower` at -1, `share` at 0, `upper` at 1, linear in between."""
    deviation = deviation.double().clamp(-1, 1)
    return share + deviation.relu() * (upper - share) - (-deviation).relu() * (share - lower)


@dataclass(frozen=True)
class Candidates:
    """Policies with their costs. `merge` makes them distinct and sorts them, best first.

    Args:
        kept: units that each site keeps.
        cost: predicted log-perplexity plus spread penalty, nats per token.
    """

    kept: Int[Tensor, "n sites"]
    cost: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.cost)

    @classmethod
    def merge(cls, *parts: "Candidates") -> "Candidates":
        """The distinct policies of all parts, best first; costs of NaN count as infinite."""
        rows = torch.cat([part.kept for part in parts])
        cost = torch.cat([part.cost for part in parts]).nan_to_num(torch.inf)
        kept, index = rows.unique(dim=0, return_inverse=True)
        cost = cost.new_full((len(kept),), torch.inf).scatter_reduce(0, index, cost, "amin")
        return cls(kept, cost).sorted()

    def sorted(self) -> "Candidates":
        """The same policies, best first."""
        cost, order = self.cost.sort(stable=True)
        return Candidates(self.kept[order], cost)

    def best(self, count: int) -> "Candidates":
        """The first `count` policies."""
        return Candidates(self.kept[:count], self.cost[:count])

    def to(self, device: torch.device | str) -> "Candidates":
        """The same policies on another device."""
        return Candidates(self.kept.to(device), self.cost.to(device))


@dataclass(frozen=True)
class Run:
    """The processes, logger and seed of one run of an agent.

    Args:
        fabric: a launched Fabric; its processes share the run.
        report: logs the metrics of rank 0.
        seed: on one process, equal seeds find equal policies.
        learnt: states of networks by name. A learner starts from those of the search's earlier
            round and replaces them; None: it starts anew.
    """

    fabric: Fabric
    report: Report
    seed: int
    learnt: dict[str, dict[str, Any]] | None = None

    @property
    def rank_seed(self) -> int:
        """A seed that differs between ranks; on a single process it is `seed`."""
        return self.seed * self.fabric.world_size + self.fabric.global_rank

    def generator(self, device: torch.device) -> torch.Generator:
        """A random generator of this rank."""
        return torch.Generator(device).manual_seed(self.rank_seed)

    def log(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Logs the metrics of rank 0; other ranks log nothing."""
        if self.fabric.is_global_zero:
            self.report(step, metrics)


@runtime_checkable
class Polish(Protocol):
    """A local search on the predictor, which improves given policies."""

    def improve(
        self, objective: Objective, start: Candidates, generator: torch.Generator
    ) -> Candidates:
        """Policies at least as good as `start`, best first."""


@dataclass(kw_only=True)
class Agent(ABC):
    """Searches for the policies of the lowest cost at the objective's ratio.

    To add an agent: subclass this in a module of `ppf.agents`, add a YAML file with all its
    hyper-parameters to `conf/agent`, and test its behaviour and its determinism.

    Args:
        polish: local search that is applied to the result; None: none is.

    Attributes:
        baseline: whether the agent is a baseline, whose policy depends on the ratio alone. A search
            then has one round without the allocation rules, and its result is this policy, even if
            uniform pruning has a lower loss.
    """

    polish: Polish | None
    baseline: ClassVar[bool] = False

    @abstractmethod
    def search(self, objective: Objective, run: Run) -> Candidates:
        """The best policies of this rank, best first, `ELITES` at most; logs metrics.

        Ranks should try different policies. If they train one network, it must stay equal on all.
        """

    def choices(
        self,
        objective: Objective,
        found: Candidates,
        known: Int[Tensor, "known sites"] | None,
        seed: int,
    ) -> Candidates:
        """The policies that a search chooses from, best first.

        These are the policies found, uniform pruning and the rules' policies, after the polish.

        Args:
            found: the best policies of all ranks.
            known: policies that are already measured and are left out; None: there are none.
            seed: of the polish.
        """
        found = Candidates.merge(found, objective.candidates(objective.baselines()))
        if self.polish is not None:
            generator = torch.Generator(objective.device).manual_seed(seed)
            found = self.polish.improve(objective, found, generator)
        if known is None:
            return found
        new = ~(found.kept[:, None] == known.to(found.kept.device)).all(2).any(1)
        return Candidates(found.kept[new], found.cost[new])


def predictions(
    objective: Objective, best: Candidates, drawn: Int[Tensor, "batch sites"], ratio: Tensor
) -> dict[str, Tensor | float]:
    """Metrics of one step of a search.

    Predictions and their `spread` are in nats per token. `violation` is the largest share of the
    cost by which a drawn policy misses its ratio.

    Args:
        best: the best policies so far, best first.
        drawn: the policies of this step.
        ratio: ratios of the drawn policies.
    """
    mean, std = objective.predictor.predict(drawn)
    return {
        "predicted_best": objective.predictor.predict(best.kept[:1]).mean[0],
        "predicted_mean": mean.mean(),
        "spread": std.mean(),
        "violation": (ratio - objective.space.saved(drawn) - _ROUNDING).max().relu(),
    }


_LARGEST_GAIN = 20.0  # nats per token
_ROUNDING = 1e-9  # rounding error of ratios
_LEAST = 1e-9  # saved share; avoids a division by zero


def per_rank(total: int, fabric: Fabric) -> int:
    """Each rank's part of `total` policies, rounded up."""
    return -(-total // fabric.world_size)
