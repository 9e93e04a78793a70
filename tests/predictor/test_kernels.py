"""Kernels against their formulas, and against gpytorch's own compositions."""

import math
from copy import deepcopy

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from linear_operator import to_dense
from torch import Tensor

from ppf.predictor.kernels import (
    ConditionedKernel,
    SiteSumKernel,
    SumOfProductsKernel,
    policy_kernel,
)
from ppf.space import Space

COLUMNS = {
    "effects_0": slice(0, 3),
    "effects_1": slice(3, 4),
    "shares_0": slice(4, 7),
    "roots": slice(7, 10),
    "emptied": slice(10, 13),
}


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 13, generator=torch.Generator().manual_seed(seed)).double()


def randomised(kernel: Kernel) -> Kernel:
    """The same kernel, with hyper-parameters that all differ."""
    generator = torch.Generator().manual_seed(0)
    kernel = kernel.double().requires_grad_(False)
    for parameter in kernel.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return kernel


def composed(kernel: SumOfProductsKernel) -> AdditiveKernel:
    """The same sum of products from gpytorch's own kernels."""
    scaled = []
    for name, term in kernel.terms.items():
        factors = [deepcopy(kernel.factors[factor]) for factor in term]
        for factor, copied in zip(term, factors, strict=True):
            copied.active_dims = torch.arange(13)[kernel.columns[factor]]
        scaled.append(ScaleKernel(ProductKernel(*factors)).double())
        scaled[-1].outputscale = kernel.log_scales[name].exp()
    return AdditiveKernel(*scaled).requires_grad_(False)


def test_sum_of_products_is_gpytorchs() -> None:
    kernel = randomised(policy_kernel(COLUMNS)).base_kernel.base_kernel
    x, y = rows(7), rows(5, seed=1)
    assert len(kernel.terms) == 10
    torch.testing.assert_close(to_dense(kernel(x, y)), to_dense(composed(kernel)(x, y)))
    torch.testing.assert_close(kernel(x, diag=True), composed(kernel)(x, diag=True))


def test_diagonal_is_that_of_the_matrix() -> None:
    kernel, x = randomised(policy_kernel(COLUMNS)), rows(7)
    diagonal = kernel(x, diag=True)
    torch.testing.assert_close(to_dense(kernel(x)).diagonal(), diagonal)
    torch.testing.assert_close(kernel.with_variance(x, rows(5, seed=1))[1], diagonal)
    assert diagonal.min() > 0


def test_conditioning_is_a_row_without_noise() -> None:
    base = randomised(policy_kernel(COLUMNS)).base_kernel
    kernel = ConditionedKernel(base, 13).double()
    kernel.known.copy_(rows(1, seed=2))
    x = torch.cat([rows(4), kernel.known])
    joint = to_dense(base(x))
    expected = joint[:4, :4] - joint[:4, 4:] @ joint[4:, 4:].inverse() @ joint[4:, :4]
    covariance = to_dense(kernel(x))
    torch.testing.assert_close(covariance[:4, :4], expected)
    assert covariance[4].abs().max() < 1e-12


def test_corrections_of_a_sum_over_sites_follow_their_formula(space: Space) -> None:
    sites, kernel = len(space), randomised(SiteSumKernel(space))
    x = torch.rand(5, 2 + 2 * sites, generator=torch.Generator().manual_seed(0)).double()
    z, q, r = x[:, :2], x[:, 2 : 2 + sites], x[:, 2 + sites :]
    level, slope, kind, smooth, rough, pairs, growth, rest = kernel.log_scales.exp().square()

    def weights(shares: Tensor, kind: float, smooth: float, rough: float) -> Tensor:
        covariance = torch.zeros(sites, sites).double()
        for i, one in enumerate(space.sites):
            for j, other in enumerate(space.sites):
                if one.kind == other.kind:
                    near = math.exp(-abs(one.layer - other.layer) / 4)
                    covariance[i, j] = kind + smooth * near + rough * (i == j)
        return shares @ covariance @ shares.T

    own = weights(q, float(kind), float(smooth), float(rough))
    growing = weights(q * r, 0.0, 1.0, 1.0)
    expected = level + slope * z @ z.T + own + pairs * own.square() + growth * growing
    expected = expected + rest * to_dense(kernel.matern(r, r))
    torch.testing.assert_close(to_dense(kernel(x)), expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(kernel(x, diag=True), expected.diagonal(), rtol=1e-5, atol=1e-8)
