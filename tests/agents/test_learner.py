"""When a training stops."""

import torch

from ppf.agents import Candidates
from ppf.agents.learner import _LearnerState


def test_iterations_count_from_the_best_mean_gain() -> None:
    state = _LearnerState(Candidates(torch.ones(1, 2, dtype=torch.long), torch.zeros(1)))
    gains = [1.0, 0.5, 1.0, 2.0, 1.5]
    assert [state.stale(i, gain) for i, gain in enumerate(gains)] == [0, 1, 2, 0, 1]
