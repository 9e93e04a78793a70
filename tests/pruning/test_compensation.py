"""Reconstruction errors of levels against outputs that are computed from the inputs."""

import pytest
import torch

from ppf.pruning.compensation import (
    Bias,
    Compensation,
    LeastSquares,
    LeastSquaresWithoutBias,
    NoCompensation,
)

WIDTHS = [0, 3, 7, 10]


@pytest.mark.parametrize(("columns", "mean"), [(10, 1000), (512, 300)])
def test_inputs_that_hardly_vary_around_a_large_mean_are_compensated(
    columns: int, mean: float
) -> None:
    """The covariance of their float32 moments is rounding errors, and not positive."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, columns, generator=generator)
    x = mean + 1e-3 * torch.randn(400, columns, generator=generator)
    least_squares = LeastSquares(damping=0.01, refit_damping=0.01)
    widths = [0, 3, 7, columns]
    levels = least_squares.levels(weight, x.T @ x / len(x), x.mean(0), widths)
    assert levels.factors is not None and levels.biases is not None
    output = x[:, :7] @ levels.factors.weight(2, weight).T + levels.biases[2]
    torch.testing.assert_close(output, x @ weight.T, rtol=1e-3, atol=1.0)


@pytest.mark.parametrize(
    "compensation",
    [NoCompensation(), Bias(), LeastSquares(0.1, 0.1), LeastSquaresWithoutBias(0.1, 0.1)],
)
def test_errors_are_those_of_the_outputs(compensation: Compensation) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator)
    x = torch.randn(400, 10, generator=generator) @ torch.randn(10, 10, generator=generator) + 2
    levels = compensation.levels(weight, x.T @ x / len(x), x.mean(0), WIDTHS)
    dense = x @ weight.T
    assert (levels.biases is None) is not compensation.biases
    assert levels.errors[-1] == pytest.approx(0, abs=1e-6)
    for level, width in enumerate(WIDTHS[:-1]):
        factors = levels.factors
        own = factors.weight(level, weight) if factors else weight[:, :width]
        output = x[:, :width] @ own.T
        if levels.biases is not None:
            output = output + levels.biases[level]
        expected = (dense - output).square().sum() / dense.square().sum()
        assert float(levels.errors[level]) == pytest.approx(float(expected), rel=1e-3)
