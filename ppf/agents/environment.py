"""The pruning environment: a batch of episodes as tensors on the predictor's device."""

import torch
from jaxtyping import Float
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from ppf.agents.base import Candidates, Objective, within


class PruningEnvironment(EnvBase):
    """Episodes that visit the sites in order, with one action per site and one final reward.

    State: site features, ratio, share of the cost removed so far, the share that the remaining
    sites must still lose minus the ratio (clipped to [-1, 1]), and last action. Action: the site's
    deviation from its uniform share, from -1 to 1 in units of the trust region. Reward, at the last
    site: predicted log-perplexity of the uniform policy minus the cost of the projected policy,
    nats per token. The projection meets the budget exactly.

    Args:
        objective: space, predictor and trust region.
        episodes: number of parallel episodes.
        given: ratio of each episode; None: they are drawn uniformly from the objective's interval.

    Attributes:
        finished: policies and costs at the end of the last episodes, in the order of the episodes.

    Source: the layer-by-layer episodes of AMC (arXiv 1802.03494); here a predictor scores the
        policy at the end.
    """

    def __init__(
        self,
        objective: Objective,
        episodes: int,
        given: Float[Tensor, " episodes"] | None = None,
    ) -> None:
        super().__init__(device=objective.device, batch_size=torch.Size([episodes]))
        self.objective, self.given = objective, given
        self.finished: Candidates
        self.table = objective.features.table(objective.device)
        share = (objective.space.units * objective.space.cost).to(objective.device).double()
        self.share = share / share.sum()

        size, column = self.table.shape[1] + _CHANGING, (episodes, 1)
        observation = Unbounded((episodes, size), device=self.device)
        self.observation_spec = Composite(observation=observation, shape=(episodes,))
        self.action_spec = Bounded(-1, 1, column, device=self.device, dtype=torch.float32)
        self.reward_spec = Unbounded(column, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        low, high = self.objective.interval
        draw = torch.rand(self.batch_size, device=self.device, dtype=torch.double)
        self.ratio = low + (high - low) * draw if self.given is None else self.given
        self.region = self.objective.region(self.ratio)
        self.site, self.removed = 0, torch.zeros_like(self.ratio)
        self.actions = torch.zeros(*self.batch_size, len(self.table), device=self.device)
        return TensorDict({"observation": self._observe()}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action, site = tensordict["action"], slice(self.site, self.site + 1)
        self.actions[:, site] = action
        wanted = within(action, *(edge[:, site] for edge in self.region))
        lost = 1 - wanted / self.objective.space.units[site].to(self.device)
        self.removed = self.removed + (lost * self.share[site]).squeeze(1)
        self.site += 1

        last = self.site == len(self.table)
        reward = self._reward() if last else torch.zeros_like(self.ratio)
        done = torch.full((*self.batch_size, 1), last, device=self.device)
        return TensorDict(
            {
                "observation": self._observe(),
                "reward": reward.float()[:, None],
                "done": done,
                "terminated": done.clone(),
            },
            self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            torch.manual_seed(seed)

    def _reward(self) -> Float[Tensor, " episodes"]:
        kept = self.objective.policy(self.actions, self.ratio)
        self.finished = Candidates(kept, self.objective.cost(kept))
        return self.objective.gain(self.finished.cost, self.ratio)

    def _observe(self) -> Float[Tensor, "episodes features"]:
        """The state at the present site. After the last site, it has the features of the first."""
        ahead = self.share[self.site :].sum().clamp_min(_LEAST)
        needed = (self.ratio - self.removed) / ahead
        last = self.actions[:, self.site - 1] if self.site else torch.zeros_like(self.ratio)
        excess = (needed - self.ratio).clamp(-1, 1)
        changing = torch.stack([self.ratio, self.removed, excess, last.double()], 1).float()
        features = self.table[self.site % len(self.table)]
        return torch.cat([features.expand(len(changing), -1), changing], 1)


_LEAST = 1e-3  # least share of the remaining cost; avoids a division by zero
_CHANGING = 4  # numbers in the state that are no site features
