"""Replay-buffer agents: what their critics are taught, and what they come to know."""

import pytest
import torch
from hydra.errors import InstantiationException
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ppf.agents import Run
from ppf.agents.offpolicy import OffPolicy, n_step
from tests.agents.synthetic import Log, agent, layered, one_process, quadratic

SHORT = {"episodes": 32, "iterations": 8, "warmup": 2, "updates": 32, "batch": 128}


@pytest.mark.parametrize("steps", [1, 3, 5, 1000])
def test_transitions_end_where_the_episode_does(steps: int) -> None:
    sites = 5
    reward = torch.arange(2.0 * sites).view(2, sites, 1)
    last = torch.arange(sites) == sites - 1
    flags = {flag: last.expand(2, sites)[..., None] for flag in ("done", "terminated")}
    state = torch.arange(sites + 1.0).expand(2, sites + 1)[..., None]
    after = {"observation": state[:, 1:], "reward": reward, **flags}
    rollout = TensorDict({"observation": state[:, :-1], "next": after}, (2, sites))

    found = n_step(rollout, steps)["next"]
    for site in range(sites):
        reached = min(site + steps, sites)
        torch.testing.assert_close(found["reward"][:, site], reward[:, site:reached].sum(1))
        assert (found["observation"][:, site] == reached).all()
        for flag in flags:
            assert (found[flag][:, site] == (reached == sites)).all()


def critic(training, samples: TensorDictBase) -> Tensor:
    """What the (first) critic expects after the actions of the samples."""
    loss = training.loss
    name = "value_network" if hasattr(loss, "value_network") else "qvalue_network"
    weights = getattr(loss, f"{name}_params")
    with (
        torch.no_grad(),
        (weights[0] if weights.batch_size else weights).to_module(module := getattr(loss, name)),
    ):
        return module(samples.clone())["state_action_value"]


@pytest.mark.parametrize("name", ["sac", "ddpg", "td3"])
def test_critics_expect_the_returns_that_were_seen(name: str) -> None:
    learner = agent(name, **SHORT)
    training, _ = learner.learn(quadratic(layered(2)), Run(one_process(), Log(), 0))
    visited = training.buffer[:]
    returns = float(visited["next", "reward"].mean())  # of whole episodes: n_steps is longer
    assert float(critic(training, visited).mean()) == pytest.approx(returns, abs=0.02)


def test_ddpg_has_slow_copies_of_actor_and_critic() -> None:
    training, _ = agent("ddpg", **SHORT).learn(quadratic(layered(2)), Run(one_process(), Log(), 0))
    for name in ("actor", "value"):
        copy, own = (getattr(training.loss, f"{x}{name}_network_params") for x in ("target_", ""))
        pairs = zip(copy.values(True, True), own.values(True, True), strict=True)
        assert any(not torch.equal(*pair) for pair in pairs), name


@pytest.mark.parametrize(
    ("warmup", "steps", "actor", "targets"),
    [(0, 1, False, False), (0, 2, True, True), (1, 2, False, True)],
)
def test_td3_moves_actor_and_targets_at_every_second_step_after_the_warmup(
    warmup: int, steps: int, actor: bool, targets: bool
) -> None:
    learner = agent("td3", warmup=warmup, updates=2)
    assert isinstance(learner, OffPolicy) and learner.delay == 2
    learner.updates = steps
    torch.manual_seed(0)
    training = learner.begin(quadratic(layered(2)), one_process())
    before = {name: value.clone() for name, value in training.loss.state_dict().items()}
    training.step()
    after = training.loss.state_dict()

    def changed(part: str) -> bool:
        names = [name for name in before if name.startswith(part)]
        assert names
        return any(not torch.equal(before[name], after[name]) for name in names)

    assert changed("qvalue_network_params")
    assert changed("actor_network_params") == actor
    assert changed("target_qvalue_network_params") == targets


def test_gradient_steps_that_would_leave_out_the_actor_are_refused() -> None:
    with pytest.raises(
        InstantiationException, match=r"agent\.updates=3 is not a multiple of agent\.delay=2"
    ):
        agent("td3", updates=3)


def test_a_full_buffer_ends_the_warmup() -> None:
    """Its length stays below the transitions of a long warm-up."""
    learner = agent("td3", warmup=2, updates=2, buffer_size=40)
    torch.manual_seed(0)
    training = learner.begin(quadratic(layered(2)), one_process())
    before = [p.clone() for p in training.actor.parameters()]
    training.step()
    pairs = zip(before, training.actor.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
