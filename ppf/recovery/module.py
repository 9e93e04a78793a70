"""The LightningModules of recovery training: a whole model, or some of its layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from ppf.errors import PPFError
from ppf.pruning.unseen import Unseen
from ppf.recovery.likeliest import Likeliest
from ppf.recovery.losses import (
    Forward,
    RecoveryLoss,
    distance,
    need_stream,
    need_teacher,
    weighted_sum,
)
from ppf.recovery.settings import Optimization

NLL = "validation/nll"
"""Mean negative log-likelihood on the validation part, nats per token."""


class TunedModule(LightningModule):
    """AdamW with warm-up and cosine decay; checkpoints hold only what is trained.

    Args:
        optimization: learning rate, weight decay and steps.
        name: as for `TrainingRun`.

    Attributes:
        monitor: the metric that validation logs and that decides which weights are kept.
    """

    monitor: ClassVar[str]

    def __init__(self, optimization: Optimization, name: str = "") -> None:
        super().__init__()
        self.optimization, self.name = optimization, name
        self.strict_loading = False
        self.register_state_dict_post_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_allow_missing)

    def configure_optimizers(self) -> Any:
        given = self.optimization
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = AdamW(trained, given.lr, weight_decay=given.weight_decay, fused=True)
        # Lightning scales and clips the gradients itself.
        optimizer._step_supports_amp_scaling = False
        schedule = LambdaLR(optimizer, partial(warmup_and_cosine, given.warmup, given.steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def log_training(self, values: Mapping[str, Tensor]) -> None:
        """Logs values of a training step, as "training/kl"."""
        self.log_dict({f"{self.name}training/{name}": value for name, value in values.items()})

    def log_validation(self, value: Float[Tensor, ""], windows: int) -> None:
        """Logs the metric `monitor`, as a mean over all windows."""
        mean: dict[str, Any] = {"batch_size": windows, "sync_dist": True}
        self.log(self.monitor, self.finite(value), logger=not self.name, **mean)
        if self.name:  # the callbacks read `monitor`
            self.log(f"{self.name}{self.monitor}", value, **mean)

    def finite(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Returns the loss.

        Raises:
            PPFError: it is not finite.
        """
        if not loss.isfinite():
            raise PPFError(
                f"the loss of recovery training is not finite at step {self.global_step}: give a"
                " lower learning rate, as in tune.full.lr=1e-4 (elastic.lr with search=), or"
                " trainer.precision=32-true."
            )
        return loss


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
        losses: by name; their weighted sum is minimised.
        optimization, name: as for `TunedModule`.
    """

    monitor: ClassVar[str] = NLL

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        losses: Mapping[str, RecoveryLoss],
        optimization: Optimization,
        name: str = "",
    ) -> None:
        super().__init__(optimization, name)
        self.student, self.losses = student, dict(losses)
        self.teacher = Unseen(teacher.eval().requires_grad_(False))

    def training_step(self, batch: Sequence[Tensor], _: int) -> Float[Tensor, ""]:
        """The weighted sum of the losses.

        Args:
            batch: windows of tokens; then, if they are stored, both tensors of `Likeliest`.
        """
        ids, *stored = batch
        stream = need_stream(self.losses)
        student = Forward.of(self.student, ids, stream=stream)
        teacher: Forward | Likeliest | None = None
        if stored:
            teacher = Likeliest(*(part.flatten(0, 1) for part in stored))
        elif need_teacher(self.losses):
            with torch.no_grad():
                teacher = Forward.of(self.teacher.value, ids, stream=stream)
        total, each = weighted_sum(self.losses, student, teacher, ids)
        self.log_training(each)
        return self.finite(total)

    def validation_step(self, batch: Sequence[Int[Tensor, "windows window"]], _: int) -> None:
        """Logs the mean negative log-likelihood, nats per token."""
        (ids,) = batch
        self.log_validation(Forward.of(self.student, ids, stream=False).nll(ids), len(ids))


class BlockModule(TunedModule):
    """Trains some consecutive layers to reproduce the dense model's residual stream after them.

    Args:
        layers: of the pruned model.
        keywords: of each layer, for one window; they hold for all windows.
        optimization, name: as for `TunedModule`.
    """

    monitor: ClassVar[str] = "validation/distance"

    def __init__(
        self,
        layers: Sequence[nn.Module],
        keywords: Sequence[dict[str, Any]],
        optimization: Optimization,
        name: str = "",
    ) -> None:
        super().__init__(optimization, name)
        self.layers, self.keywords = nn.ModuleList(layers), keywords

    def forward(
        self, stream: Float[Tensor, "windows window width"]
    ) -> Float[Tensor, "windows window width"]:
        """The stream after the layers."""
        for layer, keywords in zip(self.layers, self.keywords, strict=True):
            stream = layer(stream, **keywords)
        return stream

    def training_step(self, batch: Sequence[Tensor], _: int) -> Float[Tensor, ""]:
        """The distance from the dense stream.

        Args:
            batch: the pruned model's stream before the layers, and the dense model's after them.
        """
        loss = distance(self(batch[0]), batch[1])
        self.log_training({"distance": loss.detach()})
        return self.finite(loss)

    def validation_step(self, batch: Sequence[Tensor], _: int) -> None:
        """Logs the distance."""
        self.log_validation(distance(self(batch[0]), batch[1]), len(batch[0]))


def _frozen(module: nn.Module) -> Iterator[str]:
    named = module.named_parameters(remove_duplicate=False)
    yield from (name for name, parameter in named if not parameter.requires_grad)


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _frozen(module):
        state.pop(prefix + name, None)


def _allow_missing(module: nn.Module, keys: Any) -> None:
    frozen = tuple(_frozen(module))
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(frozen)]
