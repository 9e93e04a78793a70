"""Recovery at every pruning ratio at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.pruning import LivePruner
from ppf.pruning.elastic import Adapters
from ppf.pruning.unseen import Unseen
from ppf.recovery.losses import Forward, RecoveryLoss, need_stream, weighted_sum
from ppf.recovery.module import NLL, TunedModule
from ppf.recovery.settings import Optimization
from ppf.seeds import numbered


class _Differentiated(torch.autograd.Function):
    """A value whose gradients were computed before."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *of_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(of_output[0] * gradient for gradient in ctx.gradients)


class ElasticModule(TunedModule):
    """Trains one set of adapters for all ratios between two limits.

    Each step trains the highest ratio and some random ones (the sandwich rule). The teacher is the
    dense model: the same model at ratio 0, where the adapters are off.

    Args:
        adapters: attached to the pruner's model.
        pruner: applies policies.
        policy: gives the policy for a ratio.
        losses: by name; their weighted sum is minimised, as a mean over the ratios.
        ratios: lowest and highest.
        validated: ratios of the validation.
        draws: random ratios in a step, one from each of as many equal parts of the interval.
        seed: of the random ratios.
        optimization: as for `TunedModule`.

    Source: Yu & Huang, Universally Slimmable Networks (arXiv 1903.05134).
    """

    monitor: ClassVar[str] = NLL

    def __init__(
        self,
        adapters: Adapters,
        pruner: LivePruner,
        policy: Callable[[float], list[int]],
        losses: Mapping[str, RecoveryLoss],
        *,
        ratios: tuple[float, float],
        validated: Sequence[float],
        draws: int,
        seed: int,
        optimization: Optimization,
    ) -> None:
        super().__init__(optimization)
        self.adapters, self.pruner, self.policy = adapters, Unseen(pruner), Unseen(policy)
        self.losses, self.ratios, self.draws, self.seed = dict(losses), ratios, draws, seed
        self.validated = list(validated)

    def training_step(
        self, batch: Sequence[Int[Tensor, "windows window"]], _: int
    ) -> Float[Tensor, ""]:
        """The mean of the weighted sums at the ratios of the step.

        Gradients are computed ratio by ratio, so that memory holds the graph of one forward pass.
        """
        (ids,) = batch
        with torch.no_grad():
            teacher = self._forward(0.0, ids)
        ratios = self.drawn(self.global_step)
        trained = [p for p in self.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in trained]
        mean, means = torch.zeros((), device=ids.device), dict[str, Tensor]()
        for ratio in ratios:
            total, each = weighted_sum(self.losses, self._forward(ratio, ids), teacher, ids)
            own = torch.autograd.grad(
                total / len(ratios), trained, allow_unused=True, materialize_grads=True
            )
            torch._foreach_add_(gradients, own)
            mean += total.detach() / len(ratios)
            for name, value in each.items():
                means[name] = means.get(name, 0) + value / len(ratios)
        self.log_training(means)
        return self.finite(_Differentiated.apply(mean, gradients, *trained))

    def drawn(self, step: int) -> list[float]:
        """The ratios of a step; they depend on the seed and the step only."""
        low, high = self.ratios
        drawn = torch.rand(self.draws, generator=numbered(self.seed, step)).double()
        shares = (torch.arange(self.draws) + drawn) / self.draws
        return [*(low + (high - low) * shares).tolist(), high]

    def _forward(self, ratio: float, ids: Int[Tensor, "windows window"]) -> Forward:
        self._set_ratio(ratio)
        model = self.pruner.value.lm.model
        return Forward.of(model, ids, stream=need_stream(self.losses))

    def _set_ratio(self, ratio: float) -> None:
        pruner = self.pruner.value
        pruner.apply(self.policy.value(ratio) if ratio else pruner.space.dense.tolist())

    def validation_step(self, batch: Sequence[Int[Tensor, "windows window"]], _: int) -> None:
        """Logs the mean negative log-likelihood over the ratios, nats per token."""
        (ids,) = batch
        nlls = torch.stack([self._forward(ratio, ids).nll(ids) for ratio in self.validated])
        self.log_validation(nlls.mean(), len(ids))
