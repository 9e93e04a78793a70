"""The pruning environment: a batch of episodes as tensors on the predictor's device."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ppf.agents.base import Candidates, Objective, within

Actor = Callable[[TensorDictBase], TensorDictBase]
"""Reads "observation", [episodes, features], and adds "action", [episodes, 1]."""


class PruningEnvironment:
    """Episodes that visit the sites in order, with one action per site and one final reward.

    State: site features, ratio, share of the cost removed so far, the share that the remaining
    sites must still lose minus the ratio (clipped to [-1, 1]), and last action. Action: the site's
    deviation from its uniform share, from -1 to 1 in units of the trust region. Reward, at the last
    site: predicted log-perplexity of the uniform policy minus the cost of the projected policy,
    nats per token. The projection meets the budget exactly.

    Args:
        objective: space, predictor and trust region.

    Source: the layer-by-layer episodes of AMC (arXiv 1802.03494); here a predictor scores the
        policy at the end.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.table = objective.features.table(objective.device)
        self.units = objective.space.units.to(objective.device)
        share = (self.units * objective.space.cost.to(objective.device)).double()
        self.share = share / share.sum()
        self.observed = self.table.shape[1] + 4  # numbers in a state

    def play(
        self, actor: Actor, ratio: Float[Tensor, " episodes"]
    ) -> tuple[TensorDictBase, Candidates]:
        """Plays one episode for each ratio.

        Returns:
            The steps, [episodes, sites], with the keys that torchrl's losses read, and the final
            policies in the order of the episodes.
        """
        region, steps = self.objective.region(ratio), []
        removed, action = torch.zeros_like(ratio), torch.zeros_like(ratio)[:, None]
        for site in range(len(self.table)):
            observation = self._observe(site, ratio, removed, action)
            steps.append(actor(TensorDict({"observation": observation}, ratio.shape)))
            action = steps[-1]["action"]
            wanted = within(action, *(edge[:, site, None] for edge in region))
            lost = 1 - wanted / self.units[site]
            removed = removed + (lost * self.share[site]).squeeze(1)
        played = TensorDict.stack(steps, 1).refine_names(..., "time")  # which GAE asks for
        kept = self.objective.policy(played["action"].squeeze(-1), ratio)
        found = Candidates(kept, self.objective.cost(kept))

        done = torch.zeros(*played.shape, 1, dtype=torch.bool, device=ratio.device)
        reward = torch.zeros_like(done, dtype=torch.float)
        done[:, -1], reward[:, -1, 0] = True, self.objective.gain(found.cost, ratio).float()
        last = self._observe(0, ratio, removed, action)  # nothing reads it
        following = torch.cat([played["observation"][:, 1:], last[:, None]], 1)
        played["next"] = TensorDict(
            {"observation": following, "reward": reward, "done": done, "terminated": done},
            played.batch_size,
        )
        return played, found

    def _observe(
        self,
        site: int,
        ratio: Float[Tensor, " episodes"],
        removed: Float[Tensor, " episodes"],
        action: Float[Tensor, "episodes 1"],
    ) -> Float[Tensor, "episodes features"]:
        """The state before a site's action."""
        needed = (ratio - removed) / self.share[site:].sum().clamp_min(_LEAST)
        excess = (needed - ratio).clamp(-1, 1)
        changing = torch.stack([ratio, removed, excess, action[:, 0].double()], 1).float()
        return torch.cat([self.table[site].expand(len(ratio), -1), changing], 1)


_LEAST = 1e-3  # least share of the remaining cost; avoids a division by zero
