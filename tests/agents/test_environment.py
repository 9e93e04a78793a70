from dataclasses import replace

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from ppf.agents.environment import PruningEnvironment
from ppf.space import uniform
from tests.agents.synthetic import quadratic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def play(environment: PruningEnvironment, action: torch.Tensor):
    """Takes the given actions, [episodes, sites]."""
    steps = iter(action.T)

    def act(tensordict):
        return tensordict.set("action", next(steps)[:, None])

    return environment.rollout(action.shape[1], act)


def test_keeps_torchrl_contract() -> None:
    check_env_specs(PruningEnvironment(replace(quadratic(), interval=(0.1, 0.5)), 8), seed=0)


def test_reward_comes_last_and_is_the_gain_over_uniform() -> None:
    objective = quadratic()
    environment = PruningEnvironment(replace(objective, interval=(0.2, 0.4)), 16)
    torch.manual_seed(0)
    action = 2 * torch.rand(16, len(objective.space)) - 1
    rollout = play(environment, action)
    reward, done = rollout["next", "reward"][..., 0], rollout["next", "done"][..., 0]
    assert (reward[:, :-1] == 0).all() and not done[:, :-1].any() and done[:, -1].all()

    kept = objective.policy(action, environment.ratio)
    reference = objective.predictor.predict(uniform(objective.space, environment.ratio)).mean
    torch.testing.assert_close(reward[:, -1], (reference - objective.cost(kept)).float())


def test_the_state_shows_what_must_still_be_removed() -> None:
    objective = quadratic()
    environment = PruningEnvironment(replace(objective, interval=(0.3, 0.3)), 2)
    sites = len(objective.space)
    observed = play(environment, torch.tensor([[1.0] * sites, [0.0] * sites]))["observation"]
    assert torch.equal(observed[0, :, :-4], objective.features.table(observed.device))
    ratio, removed, excess, last = observed[..., -4:].unbind(-1)
    assert ratio == pytest.approx(torch.full((2, sites), 0.3).numpy())
    assert (removed[0, 1:] < removed[1, 1:]).all() and (excess[0, 1:] > 0).all()
    assert excess[1].abs().max() < 1e-6
    assert last[:, 1:].tolist() == [[1.0] * (sites - 1), [0.0] * (sites - 1)]
    assert observed.abs().max() <= 1.0 + 1e-6
