"""The LightningModule of recovery training at one pruning ratio, and what it shares with all."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from ppf.errors import PPFError
from ppf.pruning.elastic import Unseen
from ppf.recovery.losses import Forward, TokenLoss, weighted_sum

NLL = "validation/nll"
"""Mean negative log-likelihood on the validation part, nats per token."""
_WARMUP = 0.05  # share of the steps in which the learning rate rises


class TunedModule(LightningModule):
    """AdamW with warm-up and cosine decay; checkpoints hold only what is trained.

    Subclasses log `NLL` in validation; the weights with the lowest value are kept.

    Args:
        losses: by name; their weighted sum is minimised.
        lr: largest learning rate.
        steps: of the whole training; at its end the learning rate is 0.
    """

    def __init__(self, losses: Mapping[str, TokenLoss], lr: float, steps: int) -> None:
        super().__init__()
        self.losses, self.lr, self.steps = dict(losses), lr, steps
        self.strict_loading = False

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = AdamW(trained, self.lr, weight_decay=0.0, fused=True)
        # Lightning scales and clips the gradients itself.
        optimizer._step_supports_amp_scaling = False
        rate = partial(warmup_and_cosine, round(_WARMUP * self.steps), self.steps)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, rate), "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Removes what is not trained."""
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                checkpoint["state_dict"].pop(name, None)

    def log_training(self, values: Mapping[str, Tensor]) -> None:
        """Logs values of a training step, as "training/kl"."""
        self.log_dict({f"training/{name}": value for name, value in values.items()})

    def log_validation(self, nll: Float[Tensor, ""], windows: int) -> None:
        """Logs `NLL`, as a mean over all windows."""
        self.log(NLL, self.finite(nll), batch_size=windows, sync_dist=True)

    def finite(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Returns the loss.

        Raises:
            PPFError: it is not finite.
        """
        if not loss.isfinite():
            raise PPFError(
                f"the loss of recovery training is not finite at step {self.global_step}: give a"
                " lower learning rate, as in tune.full.relative_lr=1e-4 (with search=:"
                " elastic.relative_lr), or"
                " trainer.precision=32-true."
            )
        return loss


def root_mean_square(weights: Iterable[Tensor]) -> float:
    """The root of the mean square of all numbers of some tensors."""
    norms, counts = zip(*((float(w.detach().norm()), w.numel()) for w in weights), strict=True)
    return math.hypot(*norms) / math.sqrt(sum(counts))


def warmup_and_cosine(warmup: int, steps: int, step: int) -> float:
    """The factor of the learning rate at a step: a linear rise, then a fall to 0 along a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1)))


class RecoveryModule(TunedModule):
    """Trains a pruned model under losses that compare it with the dense model.

    Args:
        student: the pruned model; its trained parameters require gradients.
        teacher: the dense model.
        losses, lr, steps: as for `TunedModule`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        losses: Mapping[str, TokenLoss],
        lr: float,
        steps: int,
    ) -> None:
        super().__init__(losses, lr, steps)
        self.student = student
        self.teacher = Unseen(teacher.eval().requires_grad_(False))

    def training_step(
        self, batch: Sequence[Int[Tensor, "windows window"]], _: int
    ) -> Float[Tensor, ""]:
        """The weighted sum of the losses."""
        (ids,) = batch
        student, teacher = Forward.of(self.student, ids), None
        if any(loss.reads_teacher for loss in self.losses.values()):
            with torch.no_grad():
                teacher = Forward.of(self.teacher.value, ids)
        total, each = weighted_sum(self.losses, student, teacher)
        self.log_training(each)
        return self.finite(total)

    def validation_step(self, batch: Sequence[Int[Tensor, "windows window"]], _: int) -> None:
        """Logs the mean negative log-likelihood, nats per token."""
        (ids,) = batch
        self.log_validation(Forward.of(self.student, ids).nll(), len(ids))
