"""The policy that REINFORCE trains."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from lightning import Fabric

from ppf.agents.reinforce import _Gaussians
from ppf.errors import PPFError
from tests.agents.synthetic import agent, layered, quadratic


def test_means_are_polynomials_in_the_rescaled_ratio() -> None:
    objective = replace(quadratic(layered(1)), interval=(0.1, 0.5))
    gaussians = _Gaussians(objective, degree=2, std=0.3).requires_grad_(False)
    gaussians.coefficients.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    found = gaussians(torch.tensor([0.1, 0.3, 0.4, 0.5], dtype=torch.double))
    expected = [[-1.0, 3.0], [1.0, 0.0], [2.0, 0.75], [3.0, 3.0]]
    torch.testing.assert_close(found.mean, torch.tensor(expected))
    torch.testing.assert_close(found.stddev, torch.full((4, 2), 0.3))


def test_each_process_needs_two_policies() -> None:
    """Advantages are relative to the mean and the spread of a batch."""
    many = Mock(spec=Fabric, world_size=4)
    with pytest.raises(PPFError, match="give at least 8"):
        agent("reinforce", samples=4).begin(quadratic(), many)
