"""Kernels: prior covariances of two policies' residuals.

All hyper-parameters are positive. Parameters hold their logarithms, with normal priors.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import mul

import torch
from gpytorch import Module
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.priors import NormalPrior
from jaxtyping import Bool, Float
from linear_operator import to_dense
from torch import Tensor, nn

from ppf.predictor.policy_features import EMPTIED, ROOTS
from ppf.space import Space


class DotProductKernel(Kernel):
    """k(x, y) = Σ_i x_i y_i."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        return _product(x1, x2, diag)


class CommonEffectKernel(Kernel):
    """The common effect of two policies' cuts; x_i² is the effect at site i.

        k(x, y) = Σ_i min(x_i², y_i²)

    It is the sum over sites of Brownian motions that run over the site's effect: steps between
    neighbouring widths are independent, so the kernel can learn single units.
    """

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        effects, others = x1.square(), x2.square()
        if diag:
            return torch.minimum(effects, others).sum(-1)
        sums = effects.sum(-1)[:, None] + others.sum(-1)
        return (sums - torch.cdist(effects, others, p=1)) / 2  # as 2 min(a, b) = a + b - |a - b|


class SumOfProductsKernel(Kernel):
    """A sum of scaled products of kernels.

        k(x, y) = Σ_t s_t Π_{j ∈ t} k_j(x, y)

    The same as an AdditiveKernel of ScaleKernels of ProductKernels, but a kernel k_j that occurs
    in several products is evaluated once.

    Args:
        factors: the columns that each kernel k_j reads, and the kernel, by name.
        terms: names of the factors of each product.
    """

    def __init__(
        self, factors: Mapping[str, tuple[slice, Kernel]], terms: Sequence[Sequence[str]]
    ) -> None:
        super().__init__()
        self.columns = {name: columns for name, (columns, _) in factors.items()}
        self.factors = nn.ModuleDict({name: kernel for name, (_, kernel) in factors.items()})
        self.terms = {"*".join(term): term for term in terms}
        self.log_scales = nn.ParameterDict({name: torch.zeros(()) for name in self.terms})
        prior = NormalPrior(torch.zeros(len(terms)), DEVIATION)
        self.register_prior(
            "log_scales_prior", prior, lambda kernel: torch.stack([*kernel.log_scales.values()])
        )

    def products(self, x1: Tensor, x2: Tensor, diag: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The logarithm of each term's scale, and the product that it scales."""
        values = {
            name: to_dense(self.factors[name](x1[:, columns], x2[:, columns], diag=diag))
            for name, columns in self.columns.items()
        }
        for name, term in self.terms.items():
            yield self.log_scales[name], reduce(mul, (values[factor] for factor in term))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        terms = (scale.exp() * product for scale, product in self.products(x1, x2, diag))
        return sum(terms, start=x1.new_zeros(()))


class RelevanceKernel(Kernel):
    """A kernel of weighted inputs.

        k(x, y) = base(r ⊙ x, r ⊙ y)

    The relevance r_i is a hyper-parameter for the chosen columns, and 1 for all others.

    Args:
        base_kernel: the kernel of the weighted inputs.
        relevant: the chosen columns.
    """

    relevant: Bool[Tensor, " features"]

    def __init__(self, base_kernel: Kernel, relevant: Bool[Tensor, " features"]) -> None:
        super().__init__()
        self.base_kernel = base_kernel
        self.register_buffer("relevant", relevant, persistent=False)
        count = int(relevant.sum())
        register_log_parameter(self, "log_relevance", count, DEVIATION_OF_RELEVANCE)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        relevance = x1.new_ones(x1.shape[-1]).masked_scatter(
            self.relevant, self.log_relevance.exp()
        )
        return to_dense(self.base_kernel(x1 * relevance, x2 * relevance, diag=diag))


class ConditionedKernel(Kernel):
    """The covariance of a function whose value at one input, d, is known.

        k(x, y) = base(x, y) − base(x, d) base(d, y) / base(d, d)

    Args:
        base_kernel: the covariance if the value at d were not known.
        features: number of inputs.
    """

    known: Float[Tensor, "1 features"]

    def __init__(self, base_kernel: Kernel, features: int) -> None:
        super().__init__()
        self.base_kernel = base_kernel
        self.register_buffer("known", torch.zeros(1, features))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        return self.with_variance(x1, self.known)[1] if diag else self.with_variance(x1, x2)[0]

    def with_variance(
        self, x1: Float[Tensor, "batch features"], x2: Float[Tensor, "rows features"]
    ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, " batch"]]:
        """The covariance of all pairs, and the variance at x1, which adds little time."""
        left, right = (torch.cat([x, self.known]) for x in (x1, x2))
        covariance = to_dense(self.base_kernel(left, right))
        to_known = covariance[:-1, -1:]
        share = to_known / covariance[-1, -1]
        variance = self.base_kernel(x1, diag=True) - (share * to_known)[:, 0]
        return covariance[:-1, :-1] - share * covariance[-1:, :-1], variance


class SiteWeightKernel(Kernel):
    """The covariance of Σ_s w_s q_s, in which every site s has a random weight w_s.

        k(q, q′) = qᵀ (K (a² + s² D) + u² I) q′

    q are the sites' shares of a sum. A weight is the sum of a part that all sites of a kind share
    (K: same kind), a part that is smooth over depth (D = exp(−distance / 4 layers)), and an
    independent part.

    Args:
        space: the sites.
    """

    same: Float[Tensor, "sites sites"]
    smooth: Float[Tensor, "sites sites"]

    def __init__(self, space: Space) -> None:
        super().__init__()
        layers, same = space.layer.float(), (space.kind[:, None] == space.kind).float()
        self.register_buffer("same", same)
        distance = (layers[:, None] - layers).abs()
        self.register_buffer("smooth", same * torch.exp(-distance / _LENGTH))

    def forward(
        self, q1: Tensor, q2: Tensor, diag: bool = False, *, variances: Sequence[Tensor | float]
    ) -> Tensor:
        kind, smooth, alone = variances
        own = alone * torch.eye(len(self.same)).to(q1)
        return _product(q1 @ (kind * self.same + smooth * self.smooth + own), q2, diag)


class SiteSumKernel(Kernel):
    """The covariance of two policies' corrections to the logarithm of a sum over sites.

        k(x, y) = l² + t² z·z′ + W(q, q′) + i² W(q, q′)² + c² W₁(q r, q′ r′) + m² M(r, r′)

    z are the logarithms of the sums relative to those of k*, and the estimated change of the
    logarithm if gradients are used (see `ExpectedLoss`). q are the sites' shares of the sums, and r
    the removed shares of the sites. W and W₁ are `SiteWeightKernel`s. W₁ has the scales a = 0, s =
    1, u = 1, and reads q r: its weights grow with the removed share. M is a Matérn kernel.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.weights, self.sites = SiteWeightKernel(space), len(space)
        register_log_parameter(self, "log_scales", len(_SCALES), DEVIATION_OF_SUMS)
        self.log_scales.data.copy_(torch.tensor([*_SCALES.values()]).log())
        self.matern = MaternKernel(2.5, lengthscale_constraint=Positive(torch.exp, torch.log))
        self.matern.lengthscale = _SPAN
        _register_prior(self.matern, "raw_lengthscale", DEVIATION_OF_SUMS)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        level, slope, kind, smooth, rough, pairs, growth, rest = (2 * self.log_scales).exp()
        (z1, q1, r1), (z2, q2, r2) = (self._parts(x) for x in (x1, x2))
        weights = self.weights.forward(q1, q2, diag, variances=(kind, smooth, rough))
        growing = self.weights.forward(q1 * r1, q2 * r2, diag, variances=(0.0, 1.0, 1.0))
        linear = level + slope * _product(z1, z2, diag) + weights + growth * growing
        return linear + pairs * weights.square() + rest * self.matern.forward(r1, r2, diag=diag)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([x.shape[-1] - 2 * self.sites, self.sites, self.sites], -1)


def _product(x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
    return (x1 * x2).sum(-1) if diag else x1 @ x2.mT


def policy_kernel(columns: Mapping[str, slice]) -> ConditionedKernel:
    """The covariance of residuals, which are zero for the dense policy.

        k = Σ_g M_g + L + L² + C + C² + M_c (C + E + E²)

    with a scale for each term. M_g are Matérn kernels on groups of summed effects and shares, M_c
    the one on the coarsest effects; L is the dot product of the roots of effects, C the common
    effect and E the number of sites that both policies empty. Squares model all pairs of sites.
    Products with M_c let a cut's cost depend on what else is removed. Each site has one relevance
    for its own effect (effects_0), and one for L and C.

    Args:
        columns: of each group of features, as in `PolicyFeatures`.

    Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), chapter 4; sums
        of kernels as in Duvenaud et al. (NeurIPS 2011).
    """
    groups = [name for name in columns if name not in (ROOTS, EMPTIED)]
    coarsest = [name for name in groups if name.startswith("effects")][-1]
    factors: dict[str, tuple[slice, Kernel]] = {name: (columns[name], _matern()) for name in groups}
    factors["linear"] = columns[ROOTS], DotProductKernel()
    factors["common"] = columns[ROOTS], CommonEffectKernel()
    factors["emptied"] = columns[EMPTIED], DotProductKernel()
    terms = [
        *((name,) for name in groups),
        ("linear",),
        ("linear", "linear"),
        ("common",),
        ("common", "common"),
        (coarsest, "common"),
        (coarsest, "emptied"),
        (coarsest, "emptied", "emptied"),
    ]
    relevant = torch.zeros(columns[EMPTIED].stop, dtype=torch.bool)
    relevant[columns["effects_0"]] = relevant[columns[ROOTS]] = True
    weighted = RelevanceKernel(SumOfProductsKernel(factors, terms), relevant)
    return ConditionedKernel(weighted, len(relevant))


def register_log_parameter(module: Module, name: str, count: int, deviation: float) -> None:
    """Registers logarithms of hyper-parameters, and their normal prior."""
    module.register_parameter(name, nn.Parameter(torch.zeros(count)))
    _register_prior(module, name, deviation)


def _register_prior(module: Module, name: str, deviation: float) -> None:
    parameter = module.get_parameter(name)
    prior = NormalPrior(torch.zeros_like(parameter), deviation)
    module.register_prior(f"{name}_prior", prior, name)


def _matern() -> MaternKernel:
    kernel = MaternKernel(2.5, lengthscale_constraint=Positive(torch.exp, torch.log))
    _register_prior(kernel, "raw_lengthscale", DEVIATION)
    return kernel


# Standard deviations of the priors on logarithms.
DEVIATION = 2.0
DEVIATION_OF_RELEVANCE = 0.5
DEVIATION_OF_SUMS = 0.7  # of `SiteSumKernel`

# `SiteSumKernel` starts from these values.
_SCALES = {
    "level": 0.5,  # l
    "slope": 0.3,  # t
    "kind": 0.3,  # a of W
    "smooth": 0.3,  # s of W
    "rough": 0.5,  # u of W
    "pairs": 0.5,  # i
    "growth": 0.5,  # c
    "rest": 0.1,  # m
}
_SPAN = 4.0  # lengthscale of M
_LENGTH = 4.0  # layers; correlation length of `SiteWeightKernel`
