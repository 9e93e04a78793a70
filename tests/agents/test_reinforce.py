"""The policy that REINFORCE trains."""

from dataclasses import replace

import torch

from ppf.agents.reinforce import _Gaussians
from tests.agents.synthetic import layered, quadratic


def test_means_are_polynomials_in_the_rescaled_ratio() -> None:
    objective = replace(quadratic(layered(1)), interval=(0.1, 0.5))
    gaussians = _Gaussians(objective, std=0.3).requires_grad_(False)
    gaussians.coefficients.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
    found = gaussians(torch.tensor([0.1, 0.3, 0.4, 0.5], dtype=torch.double))
    expected = [[-1.0, 3.0], [1.0, 0.0], [2.0, 0.75], [3.0, 3.0]]
    torch.testing.assert_close(found.mean, torch.tensor(expected))
    torch.testing.assert_close(found.stddev, torch.full((4, 2), 0.3))
