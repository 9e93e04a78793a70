"""Recovery at every pruning ratio at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.pruning import LivePruner
from ppf.pruning.elastic import Adapters, Unseen, projections
from ppf.ranges import Count, Positive
from ppf.recovery.fit import fit
from ppf.recovery.losses import Forward, TokenLoss, weighted_sum
from ppf.recovery.module import TunedModule, root_mean_square
from ppf.recovery.training import Point, TrainingRun
from ppf.seeds import numbered

_DRAWS = 2  # random ratios in a training step, besides the highest one
_LOWEST = 0.01  # ratio; the adapters are off only under the dense policy


@dataclass(frozen=True)
class Elastic:
    """Trains low-rank adapters that all ratios share; the section `elastic`.

    Args:
        relative_lr: largest learning rate, divided by the root mean square of the projections'
            weights.
        rank: of each adapter.
        alpha: an adapter's output is scaled by alpha / rank.
    """

    relative_lr: Positive
    rank: Count
    alpha: Count

    def attach(self, pruner: LivePruner, seed: int) -> Adapters:
        """Adapters at the pruner's model, which change nothing yet."""
        torch.manual_seed(seed)
        return Adapters(pruner, self.rank, self.alpha / self.rank)

    def tune(
        self,
        adapters: Adapters,
        pruner: LivePruner,
        policy: Callable[[float], list[int]],
        highest: float,
        validated: Sequence[float],
        losses: Mapping[str, TokenLoss],
        run: TrainingRun,
    ) -> list[Point]:
        """Trains adapters in place; returns the loss curve, whose values are means over ratios.

        Args:
            policy: gives the policy for a ratio.
            highest: ratio.
            validated: ratios of the validation.
            losses: by name; their weighted sum is minimised.
        """
        with pruner.at(pruner.space.dense.tolist()):
            size = root_mean_square(x.weight for x in projections(pruner).values())
        lr = self.relative_lr * size
        given = losses, lr, run.steps, (min(_LOWEST, highest), highest), validated, run.seed
        return fit(ElasticModule(adapters, pruner, policy, *given), run)

    def identity(self) -> dict[str, Any]:
        """What determines the adapters."""
        return asdict(self) | {"draws": _DRAWS}


class ElasticModule(TunedModule):
    """Trains one set of adapters for all ratios between two limits.

    Each step trains the highest ratio and some random ones (the sandwich rule). The teacher is the
    dense model: the same model at ratio 0, where the adapters are off.

    Args:
        adapters: attached to the pruner's model.
        pruner: applies policies.
        policy: gives the policy for a ratio.
        losses, lr, steps: as for `TunedModule`; the losses are means over the ratios of a step.
        ratios: lowest and highest.
        validated: ratios of the validation.
        seed: of the random ratios.

    Source: Yu & Huang, Universally Slimmable Networks (arXiv 1903.05134).
    """

    def __init__(
        self,
        adapters: Adapters,
        pruner: LivePruner,
        policy: Callable[[float], list[int]],
        losses: Mapping[str, TokenLoss],
        lr: float,
        steps: int,
        ratios: tuple[float, float],
        validated: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__(losses, lr, steps)
        self.adapters, self.pruner, self.policy = adapters, Unseen(pruner), Unseen(policy)
        self.ratios, self.validated, self.seed = ratios, list(validated), seed

    def training_step(
        self, batch: Sequence[Int[Tensor, "windows window"]], _: int
    ) -> Float[Tensor, ""]:
        """The mean of the weighted sums at the ratios of the step.

        Gradients are computed ratio by ratio, so that memory holds the graph of one forward pass.
        """
        (ids,) = batch
        with torch.no_grad():
            teacher = self._forward(0.0, ids)
        ratios = drawn(self.ratios, self.seed, self.global_step)
        trained = [p for p in self.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in trained]
        mean, means = torch.zeros((), device=ids.device), dict[str, Tensor]()
        for ratio in ratios:
            total, each = weighted_sum(self.losses, self._forward(ratio, ids), teacher)
            own = torch.autograd.grad(
                total / len(ratios), trained, allow_unused=True, materialize_grads=True
            )
            torch._foreach_add_(gradients, own)
            mean += total.detach() / len(ratios)
            for name, value in each.items():
                means[name] = means.get(name, 0) + value / len(ratios)
        self.log_training(means)
        # Its value is 0, and its gradients are those from above.
        pairs = zip(trained, gradients, strict=True)
        known = torch.stack([(p * gradient).sum() for p, gradient in pairs]).sum()
        return self.finite(mean + (known - known.detach()))

    def validation_step(self, batch: Sequence[Int[Tensor, "windows window"]], _: int) -> None:
        """Logs the mean negative log-likelihood over the ratios, nats per token."""
        (ids,) = batch
        nlls = torch.stack([self._forward(ratio, ids).nll() for ratio in self.validated])
        self.log_validation(nlls.mean(), len(ids))

    def _forward(self, ratio: float, ids: Int[Tensor, "windows window"]) -> Forward:
        pruner = self.pruner.value
        pruner.apply(self.policy.value(ratio) if ratio else pruner.space.dense.tolist())
        return Forward.of(pruner.lm.model, ids)


def drawn(limits: tuple[float, float], seed: int, step: int) -> list[float]:
    """The ratios of a training step: one from each of `_DRAWS` equal parts, and the highest."""
    low, high = limits
    shares = torch.rand(_DRAWS, generator=numbered(seed, step)).double()
    shares = (torch.arange(_DRAWS) + shares) / _DRAWS
    return [*(low + (high - low) * shares).tolist(), high]
