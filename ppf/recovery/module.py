"""The LightningModule of recovery training."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from ppf.errors import PPFError
from ppf.llm import output_head, summed_nll
from ppf.recovery.losses import Forward, Loss, need_stream, need_teacher, weighted_sum

MONITOR = "validation/nll"


class Teacher:
    """The frozen dense model; checkpoints, averages of weights and DDP do not see it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self


class RecoveryModule(LightningModule):
    """Trains a pruned model under losses that compare it with the dense model.

    Checkpoints hold only what is trained.

    Args:
        student: the pruned model; its trained parameters require gradients.
        teacher: the dense model.
        losses: by name; their weighted sum is minimised.
        lr: largest learning rate.
        weight_decay: of AdamW.
        warmup: steps in which the learning rate rises from 0.
        steps: of the whole training; at its end the learning rate is 0.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher,
        losses: Mapping[str, Loss],
        *,
        lr: float,
        weight_decay: float,
        warmup: int,
        steps: int,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.losses = student, teacher, dict(losses)
        self.lr, self.weight_decay, self.warmup, self.steps = lr, weight_decay, warmup, steps
        self.strict_loading = False
        self.register_state_dict_post_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_allow_missing)

    def on_fit_start(self) -> None:
        if need_teacher(self.losses):
            self.teacher.model.to(self.device)

    def training_step(self, ids: Int[Tensor, "windows window"], _: int) -> Float[Tensor, ""]:
        """The weighted sum of the losses.

        Raises:
            PPFError: it is not finite.
        """
        stream = need_stream(self.losses)
        student = Forward.of(self.student, ids, stream=stream)
        teacher = None
        if need_teacher(self.losses):
            with torch.no_grad():
                teacher = Forward.of(self.teacher.model, ids, stream=stream)
        total, each = weighted_sum(self.losses, student, teacher, ids)
        if not total.isfinite():
            raise PPFError(
                f"the loss of recovery training is not finite at step {self.global_step}: give a"
                " lower learning rate, as in tune.full.lr=1e-4, or trainer.precision=32-true."
            )
        self.log_dict({f"training/{name}": value for name, value in each.items()})
        return total

    def validation_step(self, ids: Int[Tensor, "windows window"], _: int) -> None:
        """Logs the mean negative log-likelihood, nats per token."""
        hidden = self.student.get_decoder()(ids, use_cache=False).last_hidden_state
        nll = summed_nll(output_head(self.student), hidden, ids) / ids[:, 1:].numel()
        self.log(MONITOR, nll.float(), batch_size=len(ids), sync_dist=True)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.student.parameters() if p.requires_grad]
        optimizer = AdamW(trained, self.lr, weight_decay=self.weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimizer, self.warmup, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _allow_missing(module: nn.Module, keys: Any) -> None:
    named = module.named_parameters(remove_duplicate=False)
    frozen = tuple(name for name, parameter in named if not parameter.requires_grad)
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(frozen)]
