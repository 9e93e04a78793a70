import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from ppf.agents import Candidates, Objective
from ppf.agents.environment import PruningEnvironment
from ppf.space import uniform
from tests.agents.synthetic import quadratic


def play(objective: Objective, action: Tensor, ratio: Tensor) -> tuple[TensorDictBase, Candidates]:
    """Takes the given actions, [episodes, sites]."""
    steps = iter(action.T)
    return PruningEnvironment(objective).play(
        lambda state: state.set("action", next(steps)[:, None]), ratio
    )


def test_reward_comes_last_and_is_the_gain_over_uniform() -> None:
    objective, ratio = quadratic(), torch.linspace(0.2, 0.4, 16, dtype=torch.double)
    action = 2 * torch.rand(16, len(objective.space)) - 1
    played, found = play(objective, action, ratio)
    reward, done = played["next", "reward"][..., 0], played["next", "done"][..., 0]
    assert (reward[:, :-1] == 0).all() and not done[:, :-1].any() and done[:, -1].all()

    assert torch.equal(found.kept, objective.policy(action, ratio))
    reference = objective.predictor.predict(uniform(objective.space, ratio)).mean
    torch.testing.assert_close(reward[:, -1], (reference - found.cost).float())


def test_the_state_shows_what_must_still_be_removed() -> None:
    objective = quadratic()
    sites, ratio = len(objective.space), torch.full((2,), 0.3, dtype=torch.double)
    played, _ = play(objective, torch.tensor([[1.0] * sites, [0.0] * sites]), ratio)
    observed = played["observation"]
    assert torch.equal(played["next", "observation"][:, :-1], observed[:, 1:])
    assert torch.equal(observed[0, :, :-4], objective.features.table(observed.device))
    ratio, removed, excess, last = observed[..., -4:].unbind(-1)
    assert ratio == pytest.approx(torch.full((2, sites), 0.3).numpy())
    assert (removed[0, 1:] < removed[1, 1:]).all() and (excess[0, 1:] > 0).all()
    assert excess[1].abs().max() < 1e-6
    assert last[:, 1:].tolist() == [[1.0] * (sites - 1), [0.0] * (sites - 1)]
    assert observed.abs().max() <= 1.0 + 1e-6
