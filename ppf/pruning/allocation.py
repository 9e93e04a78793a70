"""Allocation rules: how many units each site keeps. Most are published; some are our own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ppf.pruning.features import SiteFeatures
from ppf.pruning.traits import MULTIPLES, Traits
from ppf.ranges import Share
from ppf.space import project, uniform


class Allocation(ABC):
    """Computes widths from site features. It does not change the order of the units.

    Rules are no dataclasses, since Hydra would take those in the mapping `rules` for configs.

    To add a rule:

    1. Subclass this.
    2. Add a YAML with all its hyper-parameters to `conf/allocation`.
    3. Add its name to `conf/rules/all.yaml`, and a YAML that uses it to `conf/agent`.

    Attributes:
        published: whether the rule is from a paper. Reports name the best of these.
        empties: whether the rule may remove all units of a site. Layer rules may not: a share of a
            single KV group would be rounded to no attention.
    """

    published: ClassVar[bool] = False
    empties: ClassVar[bool] = False

    def policies(
        self, features: SiteFeatures, ratio: Float[Tensor, " batch"]
    ) -> Int[Tensor, "batch sites"]:
        """The rule's policies, which meet the budget.

        Unless the rule `empties` sites, each site keeps at least one unit, and the other sites
        lose the more. This does not hold for ratios that cannot be reached so.

        Args:
            features: features of the space's sites.
            ratio: pruning ratios in [0, 1).
        """
        wanted = self.wanted(features, ratio)
        units = features.space.units.to(wanted.device).expand(wanted.shape)
        return project(
            features.space, wanted, ratio, (units.clamp(max=0 if self.empties else 1), units)
        )

    @abstractmethod
    def wanted(
        self, features: SiteFeatures, ratio: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch sites"]:
        """Units to keep as real numbers, which `ppf.space.project` rounds to meet the budget.

        Args:
            features: features of the space's sites.
            ratio: pruning ratios in [0, 1).
        """


class Uniform(Allocation):
    """Every site keeps the same share."""

    def policies(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        return uniform(features.space, ratio)

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        return features.space.shares(ratio)


class LayerRule(Allocation):
    """A rule that computes one pruning ratio per layer, for all sites of the layer."""

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space = features.space
        return space.widths(1 - self.removed(features, ratio)[:, space.layer.to(ratio.device)])

    @abstractmethod
    def removed(
        self, features: SiteFeatures, ratio: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch layers"]:
        """The pruning ratio of each layer."""


class OWL(LayerRule):
    """Layers with more outliers keep more; layer ratios differ by at most 2λ.

    D is the share of a layer's scores |W_ij| ‖X_j‖ that exceed m times their mean. With
    d = (D − min D) / (max D − min D):  removed = ratio − 2λ (d − mean d).

    Args:
        m: integer multiple of the mean score above which a score is an outlier.
        bound: λ.

    Source: OWL (arXiv 2310.05175), section 3.2, as its code maps D to ratios.
    """

    published: ClassVar[bool] = True

    def __init__(self, m: Annotated[int, Field(ge=1, lt=MULTIPLES)], bound: Share) -> None:
        self.m, self.bound = m, bound

    def removed(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        outliers = _unit_range(_traits(features).outliers[:, self.m].to(ratio))
        return ratio[:, None] - 2 * self.bound * (outliers - outliers.mean())


class AlphaPruning(LayerRule):
    """Layers whose weight spectra have heavier tails (smaller exponents) keep more.

    removed = η ((1 − ε) + 2ε (α − min α) / (max α − min α)), with exponents α, ε = 0.3, and a
    factor η that makes the removed parameters meet the ratio.

    Source: AlphaPruning (arXiv 2410.10912), eq. 2, with exponents averaged over the matrices of a
        layer.
    """

    published: ClassVar[bool] = True

    def removed(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        exponents = _traits(features).exponents
        assert exponents is not None, "no part of the config names AlphaPruning"
        exponents = _unit_range(exponents.to(ratio))
        share = 1 - _EPSILON + 2 * _EPSILON * exponents
        space = features.space
        of_site = space.kept_params[:, -1].double() / space.total
        of_layer = of_site.new_zeros(space.layers).index_add(0, space.layer, of_site)
        return ratio[:, None] * share / (share * of_layer.to(ratio)).sum()


class BlockInfluence(LayerRule):
    """Layers that change the direction of their hidden states more keep more.

    removed = ratio · L · softmax(−influence / ε) over the L layers, with ε = 0.1.

    Source: block influence is from ShortGPT (arXiv 2403.03853), which removes whole layers; the
        formula is from MoDeGPT (arXiv 2408.09632), section 3.3.
    """

    published: ClassVar[bool] = True

    def removed(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        influence = _traits(features).influence.to(ratio)
        return ratio[:, None] * len(influence) * (-influence / _TEMPERATURE).softmax(0)


class FLAP(Allocation):
    """Removes the atoms of lowest standardised fluctuation in the whole model.

    Source: FLAP (arXiv 2312.11983), adaptive structure search (AL-AM) with the WIFV metric. Its
        code counts a head as 512 / 3 channels; here each atom counts its parameters. The paper has
        no grouped attention. Scores of KV groups, the mean of which is 0 in each layer, say nothing
        about a layer's only group, so each site keeps a unit.
    """

    published: ClassVar[bool] = True

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space, scores = features.space, _traits(features).fluctuation
        by_site = [scores[site.name].to(ratio) for site in space.sites]
        atoms = ratio.new_tensor([len(site) for site in by_site])
        params = space.kept_params[:, -1].to(ratio) / atoms  # of one atom
        costs = [x.expand(len(site)) for x, site in zip(params, by_site, strict=True)]
        return space.widths(1 - _cheapest(by_site, costs, ratio) / atoms)


class GreedyRule(Allocation):
    """Removes, one after another, the unit that increases the sum of all sites' scores least.

    The increase is divided by the number of parameters that are removed with the unit.
    """

    empties: ClassVar[bool] = True

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space, scores = features.space, self.scores(features).to(ratio)
        ends = [site.units + 1 for site in space.sites]
        tables = zip(scores, space.kept_params.to(ratio), ends, strict=True)
        params, rises = [], []
        for row, kept, end in tables:
            params.append(kept[:end].diff().flip(0))  # of each unit, the first one to go first
            # A unit can only be removed after the less important ones, so its score is at least
            # theirs.
            rises.append(-(row[:end].diff().flip(0) / params[-1]).cummin(0).values)
        return space.units.to(ratio) - _cheapest(rises, params, ratio)

    @abstractmethod
    def scores(self, features: SiteFeatures) -> Float[Tensor, "sites levels"]:
        """A score of each site and level; lower is better."""


class ImportanceGlobal(GreedyRule):
    """Removes the unit that has the least share of its site's importance per parameter.

    With `importance=reap`, this is one threshold for the experts of all layers, whose scores are
    divided by the sum of those of their layer. Scores of `importance=obs` are ranks, so with it the
    rule is nearly uniform.
    """

    def scores(self, features: SiteFeatures) -> Tensor:
        return -features.retained


class ObsGlobal(GreedyRule):
    """Removes the unit that adds the least reconstruction error per parameter, again and again.

    Source: the global greedy step of Optimal Brain Compression (arXiv 2208.11580). The errors are
        the relative reconstruction errors of the level bank, after compensation.
    """

    def scores(self, features: SiteFeatures) -> Tensor:
        return features.errors


class FisherGlobal(GreedyRule):
    """Removes the unit that adds the least expected loss per parameter, again and again.

    The expected loss is half the Fisher information along the change of the site's output.

    Source: our own; `ppf.pruning.sensitivity` computes the expected losses.
    """

    def scores(self, features: SiteFeatures) -> Tensor:
        return features.losses


class LeastExpectedLoss(GreedyRule):
    """Minimises the sum of the sites' expected losses, each replaced by its lower convex hull.

    If a loss stays constant over several levels and then jumps, the hull spreads the jump over
    these levels. `FisherGlobal` charges all of it to one unit.

    Source: for convex losses the greedy order is optimal (Fox, "Discrete Optimization Via Marginal
        Analysis", 1966).
    """

    def scores(self, features: SiteFeatures) -> Tensor:
        space = features.space
        rows = zip(features.losses, space.kept_params, space.units.tolist(), strict=True)
        hulls = [_lower_hull(kept[: n + 1] / kept[1], row[: n + 1]) for row, kept, n in rows]
        return torch.nn.utils.rnn.pad_sequence(hulls, True)


def _lower_hull(
    params: Float[Tensor, " levels"], values: Float[Tensor, " levels"]
) -> Float[Tensor, " levels"]:
    """The lower convex hull of the points (parameters, value), at every level."""
    hull: list[tuple[int, float]] = []
    for a, b in zip(params.tolist(), values.tolist(), strict=True):
        while len(hull) > 1:
            (x, y), (u, v) = hull[-2:]
            if (v - y) * (a - x) < (b - y) * (u - x):  # (u, v) lies below the line
                break
            hull.pop()
        hull.append((a, b))
    corners, heights = zip(*hull, strict=True)
    every = np.interp(params, corners, heights)
    return torch.from_numpy(every).to(values)


def _unit_range(values: Float[Tensor, " layers"]) -> Float[Tensor, " layers"]:
    """Rescales linearly to [0, 1]; all zero if the values are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def _cheapest(
    scores: Sequence[Float[Tensor, " _"]], costs: Sequence[Float[Tensor, " _"]], ratio: Tensor
) -> Float[Tensor, "batch sites"]:
    """Counts the items of each site among those of lowest scores that together cost `ratio`.

    Args:
        scores: one score for each item of each site.
        costs: cost of each item of each site.
        ratio: share of the total cost.
    """
    queue = torch.cat(list(scores)).argsort(stable=True)
    gone = torch.cat(list(costs)).double()[queue].cumsum(0)
    gone = torch.cat([gone.new_zeros(1), gone])
    lost = torch.searchsorted(gone, ratio.double() * gone[-1] * (1 - _ROUNDING))
    ranks = queue.argsort().split([len(site) for site in scores])
    return torch.stack([torch.searchsorted(r.sort().values, lost) for r in ranks], 1).to(ratio)


_ROUNDING = 1e-12  # relative tolerance when costs are compared
_EPSILON = 0.3  # of AlphaPruning: relative deviation of layer ratios
_TEMPERATURE = 0.1  # of BlockInfluence; larger: more uniform


def _traits(features: SiteFeatures) -> Traits:
    assert features.traits is not None, "allocation rules need the traits of the dense model"
    return features.traits
