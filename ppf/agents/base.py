"""What every agent is given, and what it hands back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from lightning import Fabric
from torch import Tensor

from ppf.agents.checkpoint import Checkpoint
from ppf.errors import PPFError
from ppf.predictor.protocol import Surrogate
from ppf.pruning import Allocation, SiteFeatures
from ppf.ranges import Count
from ppf.space import Space, project, uniform

Report = Callable[[int, Mapping[str, Tensor | float]], None]
"""Takes a step and its metrics; tensors come as they are, so that only the logger synchronises."""


@dataclass(frozen=True)
class Objective:
    """What a search minimises, and the trust region around uniform pruning that it stays inside.

    Args:
        space: under the budget that policies have to meet.
        ratio: the share of the budget's cost that policies have to save.
        interval: ratios that a ratio-conditioned agent learns; a single one where both ends are
            `ratio`.
        spread_penalty: standard deviations of the prediction that count against a policy.
        trust_region: largest deviation of a site from its uniform share, relative to that share.
            Every site may move by one unit at least, rounded outwards: three KV groups would
            otherwise stay where uniform puts them.
        features: what is known of the sites.
        rules: allocation rules by name; searches start from their policies too.
        device: where policies, predictions and agents live.
    """

    space: Space
    predictor: Surrogate
    ratio: float
    interval: tuple[float, float]
    spread_penalty: float
    trust_region: float
    features: SiteFeatures
    rules: Mapping[str, Allocation]
    device: torch.device

    def at(self, ratio: float) -> "Objective":
        """The same objective at one ratio."""
        return replace(self, ratio=ratio, interval=(ratio, ratio))

    @property
    def errors(self) -> Float[Tensor, "sites levels"]:
        """Relative reconstruction errors, [site, kept]."""
        return self.features.errors.to(self.device)

    def cost(self, kept: Int[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Predicted log-perplexity plus the penalty on its spread, nats per token."""
        mean, std = self.predictor.predict(kept)
        return mean + self.spread_penalty * std

    def gain(
        self, cost: Float[Tensor, " batch"], ratio: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """What policies save against uniform pruning at their ratios, predicted nats per token."""
        return self.predictor.predict(uniform(self.space, ratio)).mean - cost

    def ratios(self, batch: int) -> Float[Tensor, " batch"]:
        """The ratio asked for, once per policy."""
        return torch.full((batch,), self.ratio, dtype=torch.double, device=self.device)

    def region(
        self, ratio: Float[Tensor, " batch"]
    ) -> tuple[
        Float[Tensor, "batch sites"], Float[Tensor, "batch sites"], Float[Tensor, "batch sites"]
    ]:
        """Units kept at the trust region's lower end, in uniform pruning, and at the upper end."""
        units = self.space.units.to(ratio.device).double()
        share = self.space.shares(ratio)
        reach = (self.trust_region * share).clamp_min(1)
        return (
            (share - reach).floor().clamp_min(0),
            share,
            torch.minimum((share + reach).ceil(), units),
        )

    def project(
        self, wanted: Float[Tensor, "batch sites"], ratio: Float[Tensor, " batch"]
    ) -> Int[Tensor, "batch sites"]:
        """The policies nearest to `wanted`, inside the trust region, that meet the budget."""
        lower, _, upper = self.region(ratio)
        return project(self.space, wanted, ratio, (lower.long(), upper.long()))

    def policy(
        self, deviation: Float[Tensor, "batch sites"], ratio: Float[Tensor, " batch"]
    ) -> Int[Tensor, "batch sites"]:
        """Policies from deviations: -1 asks for the region's lower end, 1 for its upper end."""
        return self.project(within(deviation, *self.region(ratio)), ratio)

    def uniform(self) -> Int[Tensor, "1 sites"]:
        """The uniform policy at the ratio asked for."""
        return uniform(self.space, self.ratios(1))

    def ruled(self) -> Int[Tensor, "rules sites"]:
        """The rules' policies, wherever they lie."""
        return project(self.space, self._wishes(), self.ratios(len(self.rules)))

    def starts(self) -> Int[Tensor, "starts sites"]:
        """Where searches begin, inside the trust region.

        Uniform, per kind the policy that spares that kind, and what the rules wish for.
        """
        ratio, units = self.ratios(1), self.space.units.to(self.device)
        spared = [
            torch.tensor([site.kind == kind for site in self.space.sites], device=self.device)
            for kind in self.space.kinds
        ]
        share = self.space.shares(ratio)
        wishes = [torch.where(mask, 2.0 * units, share) for mask in spared]
        wanted = torch.cat([*wishes, self._wishes()])
        return torch.cat([self.uniform(), self.project(wanted, self.ratios(len(wanted)))])

    def _wishes(self) -> Float[Tensor, "rules sites"]:
        ratio = self.ratios(1)
        wishes = [rule.wanted(self.features, ratio).double() for rule in self.rules.values()]
        return torch.cat([self.space.shares(ratio)[:0], *wishes])

    def candidates(self, kept: Int[Tensor, "batch sites"]) -> "Candidates":
        """The policies with their costs."""
        return Candidates.merge(Candidates(kept, self.cost(kept)))


def within(
    deviation: Float[Tensor, "batch sites"],
    lower: Float[Tensor, "batch sites"],
    share: Float[Tensor, "batch sites"],
    upper: Float[Tensor, "batch sites"],
) -> Float[Tensor, "batch sites"]:
    """Units wanted: `lower` at deviation -1, `share` at 0, `upper` at 1, linear between."""
    deviation = deviation.double().clamp(-1, 1)
    return share + deviation.relu() * (upper - share) - (-deviation).relu() * (share - lower)


@dataclass(frozen=True)
class Candidates:
    """Policies that a search proposes; `merge` leaves them distinct and best first.

    Args:
        cost: predicted, spread penalty included, nats per token.
    """

    kept: Int[Tensor, "n sites"]
    cost: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.cost)

    @classmethod
    def merge(cls, *parts: "Candidates") -> "Candidates":
        """All policies of the parts once, best first; those without a finite cost come last."""
        rows = torch.cat([part.kept for part in parts])
        cost = torch.cat([part.cost for part in parts]).nan_to_num(torch.inf)
        kept, index = rows.unique(dim=0, return_inverse=True)
        cost = cost.new_full((len(kept),), torch.inf).scatter_reduce(0, index, cost, "amin")
        cost, queue = cost.sort(stable=True)
        return cls(kept[queue], cost)

    def best(self, count: int) -> "Candidates":
        """The first `count`."""
        return Candidates(self.kept[:count], self.cost[:count])

    def to(self, device: torch.device | str) -> "Candidates":
        """The same on another device."""
        return Candidates(self.kept.to(device), self.cost.to(device))


@dataclass(frozen=True)
class Run:
    """One run of an agent.

    Args:
        fabric: launched; its processes share the run.
        report: takes the metrics of the first rank.
        seed: the same one finds the same policies on one process.
        checkpoint: where an agent that trains for long keeps its training; None: nowhere.
    """

    fabric: Fabric
    report: Report
    seed: int
    checkpoint: Checkpoint | None = None

    @property
    def rank_seed(self) -> int:
        """A seed for what must differ between ranks; the seed itself on a single process."""
        return self.seed * self.fabric.world_size + self.fabric.global_rank

    def generator(self, device: torch.device) -> torch.Generator:
        """This rank's own."""
        return torch.Generator(device).manual_seed(self.rank_seed)

    def tell(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Reports metrics; those of the other ranks are not heard."""
        if self.fabric.is_global_zero:
            self.report(step, metrics)


@runtime_checkable
class Polish(Protocol):
    """A local search on the predictor that starts from policies already found."""

    def improve(
        self, objective: Objective, start: Candidates, generator: torch.Generator
    ) -> Candidates: ...


class Agent(ABC):
    """Searches for the policies of least cost at the objective's ratio.

    To add one: subclass this in a module of `ppf.agents`, name it in a YAML of `conf/agent` with
    all its hyper-parameters, and give it a behaviour and a determinism test.

    Args:
        threads: of the CPU that the search uses; on small tensors more of them mostly wait for each
            other.
        polish: what the runner adds to the search's result, or None where it has to stand for
            itself.
    """

    def __init__(self, *, threads: Count, polish: Polish | None) -> None:
        self.threads, self.polish = threads, polish

    @abstractmethod
    def search(self, objective: Objective, run: Run) -> Candidates:
        """Policies of this rank, best first; every few steps the run is told their metrics.

        Ranks draw different policies; what they learn jointly they must agree on.
        """


def predictions(
    objective: Objective, best: Candidates, drawn: Int[Tensor, "batch sites"], ratio: Tensor
) -> dict[str, Tensor | float]:
    """Metrics of a step: what is predicted for the best and for those drawn, nats per token.

    Perplexities are given by band of the ratio, too; `violation` is the largest share of the cost
    by which a drawn policy misses its ratio.
    """
    mean, std = objective.predictor.predict(drawn)
    metrics: dict[str, Tensor | float] = {
        "predicted_best": objective.predictor.predict(best.kept[:1]).mean[0],
        "predicted_mean": mean.mean(),
        "spread": std.mean(),
        "violation": (ratio - objective.space.saved(drawn) - _ROUNDING).max().relu(),
    }
    for low, high in pairwise(_BANDS):
        inside = (ratio >= low) & (ratio < high)
        if inside.any():
            metrics[f"perplexity_{low:.0%}_{high:.0%}".replace("%", "")] = mean[inside].mean().exp()
    return metrics


_BANDS = (0.0, 0.15, 0.3, 0.45, 0.6, 1.0)
_ROUNDING = 1e-9


def share(total: int, name: str, fabric: Fabric) -> int:
    """This rank's part of `total`.

    Raises:
        PPFError: the ranks cannot share it evenly.
    """
    if total % fabric.world_size or total < fabric.world_size:
        raise PPFError(
            f"agent.{name}={total} cannot be shared evenly over {fabric.world_size} processes:"
            f" give a multiple of {fabric.world_size}."
        )
    return total // fabric.world_size
