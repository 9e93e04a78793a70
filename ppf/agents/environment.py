"""The pruning environment: thousands of episodes at once, as tensors on the predictor's device."""

import torch
from jaxtyping import Float
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from ppf.agents.base import Candidates, Objective, within

_KNOWN_SHARES = (0.25, 0.5, 0.75)  # kept shares at which the state tells a site's error


class PruningEnvironment(EnvBase):
    """Visits the sites in order, all episodes in step; one action a site, one reward an episode.

    State: the site's features, the ratio, the share removed so far, the share that the sites ahead
        must lose
    beyond the ratio, and the last action. Action: the site's deviation from its uniform share, in
    [-1, 1] of the trust region. Reward, at the last site: the predicted log-perplexity of the
    uniform policy at that ratio minus the cost of the projected policy (nats per token). The
    projection makes the budget exact whatever the actions.

    Args:
        episodes: run at once.
        ratios: each episode's ratio is drawn evenly from this interval, or
        given: is given, one an episode.

    Attributes:
        finished: the policies and costs that the latest episodes ended in, in their order, repeats
            included.

    Source: the layer-by-layer episodes of AMC (arXiv 1802.03494), with a predictor as the critic of
        whole policies.
    """

    def __init__(
        self,
        objective: Objective,
        episodes: int,
        ratios: tuple[float, float],
        given: Float[Tensor, " episodes"] | None = None,
    ) -> None:
        super().__init__(device=objective.device, batch_size=torch.Size([episodes]))
        self.objective, self.ratios, self.given = objective, ratios, given
        self.finished: Candidates
        self.features = site_features(objective)
        share = (objective.space.units * objective.space.cost).to(objective.device).double()
        self.share = share / share.sum()

        size, column = self.features.shape[1] + _CHANGING, (episodes, 1)
        observation = Unbounded((episodes, size), device=self.device)
        self.observation_spec = Composite(observation=observation, shape=(episodes,))
        self.action_spec = Bounded(-1, 1, column, device=self.device, dtype=torch.float32)
        self.reward_spec = Unbounded(column, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        low, high = self.ratios
        draw = torch.rand(self.batch_size, device=self.device, dtype=torch.double)
        self.ratio = low + (high - low) * draw if self.given is None else self.given
        self.region = self.objective.region(self.ratio)
        self.site, self.removed = 0, torch.zeros_like(self.ratio)
        self.actions = torch.zeros(*self.batch_size, len(self.features), device=self.device)
        return TensorDict({"observation": self._observe()}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action, site = tensordict["action"], slice(self.site, self.site + 1)
        self.actions[:, site] = action
        wanted = within(action, *(edge[:, site] for edge in self.region))
        lost = 1 - wanted / self.objective.space.units[site].to(self.device)
        self.removed = self.removed + (lost * self.share[site]).squeeze(1)
        self.site += 1

        last = self.site == len(self.features)
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
        """After the last site, the first one's features stand in: nothing is decided there."""
        ahead = self.share[self.site :].sum().clamp_min(_LEAST)
        needed = (self.ratio - self.removed) / ahead
        last = self.actions[:, self.site - 1] if self.site else torch.zeros_like(self.ratio)
        excess = (needed - self.ratio).clamp(-1, 1)
        changing = torch.stack([self.ratio, self.removed, excess, last.double()], 1).float()
        features = self.features[self.site % len(self.features)]
        return torch.cat([features.expand(len(changing), -1), changing], 1)


_LEAST = 1e-3  # share of the cost
_CHANGING = 4  # numbers of the state that differ between episodes


def site_features(objective: Objective) -> Float[Tensor, "sites features"]:
    """What is known of each site: which it is, kind, depth, width, cost and errors."""
    space, device = objective.space, objective.device
    units, cost = space.units.to(device), space.cost.to(device)
    kinds = torch.tensor([space.kinds.index(site.kind) for site in space.sites], device=device)
    layers = torch.tensor([site.layer for site in space.sites], device=device)
    kept = torch.stack([(share * units).round().long() for share in _KNOWN_SHARES], 1)
    numbers = [
        layers / max(space.layers - 1, 1),
        units / units.max(),
        units * cost / (units * cost).max(),
    ]
    return torch.cat(
        [
            torch.eye(len(space), device=device),
            torch.nn.functional.one_hot(kinds, len(space.kinds)),
            torch.stack(numbers, 1),
            objective.errors.gather(1, kept),
        ],
        1,
    ).float()
