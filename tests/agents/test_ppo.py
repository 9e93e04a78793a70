"""What an update of PPO changes."""

import torch

from ppf.agents.learner import Learner
from tests.agents.synthetic import agent, layered, one_process, quadratic


def test_an_update_moves_actor_and_critic() -> None:
    learner = agent("ppo", episodes=16)
    assert isinstance(learner, Learner)
    torch.manual_seed(0)
    training = learner.begin(quadratic(layered(2)), one_process())
    loss = training.parts()["loss"]
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    training.step()
    after = loss.state_dict()
    for part in ("actor_network_params", "critic_network_params"):
        names = [name for name in before if name.startswith(part)]
        assert names and any(not torch.equal(before[name], after[name]) for name in names)
