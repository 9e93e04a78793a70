"""Which weights recovery training changes, the options of `tune=`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.ranges import Count, Positive
from ppf.recovery.fit import fit
from ppf.recovery.losses import TokenLoss
from ppf.recovery.module import RecoveryModule, root_mean_square
from ppf.recovery.training import Point, TrainingRun


class Tuner(ABC):
    """Trains some weights of a pruned model.

    Args:
        relative_lr: largest learning rate, divided by the root mean square of the matrices that are
            changed (`NormsAndBiases`: of the vectors). It is 0.20 in SmolLM2-135M and 0.02 in
            Qwen2.5-Coder-0.5B, and a step of Adam is about as large as the learning rate.
    """

    def __init__(self, relative_lr: Positive) -> None:
        self.relative_lr = relative_lr

    @abstractmethod
    def start(self, model: PreTrainedModel) -> Iterable[Tensor]:
        """Makes the parameters that are trained require gradients, and no others.

        Returns:
            the weights that the training changes, whose size sets the learning rate.
        """

    def finish(self, model: PreTrainedModel) -> None:
        """Removes what `start` added to the model, and keeps the trained weights."""
        model.requires_grad_(False)

    def tune(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        losses: Mapping[str, TokenLoss],
        run: TrainingRun,
    ) -> list[Point]:
        """Trains the pruned model in place; returns the loss curve.

        Args:
            teacher: the dense model, in the number format of the computation.
            losses: by name; their weighted sum is minimised.

        Raises:
            PPFError: the loss is not finite.
            torch.OutOfMemoryError: the micro-batch is too large.
        """
        without_dropout(student)
        torch.manual_seed(run.seed)  # of what `start` draws
        lr = self.relative_lr * root_mean_square(self.start(student))
        curve = fit(RecoveryModule(student, teacher, losses, lr, run.steps), run)
        student.eval()
        self.finish(student)
        return curve


class Full(Tuner):
    """Trains all weights except the embeddings.

    Args:
        embeddings: whether embeddings (of positions too) and the output head are trained too.
    """

    def __init__(self, relative_lr: Positive, embeddings: bool) -> None:
        super().__init__(relative_lr)
        self.embeddings = embeddings

    def start(self, model: PreTrainedModel) -> Iterable[Tensor]:
        model.requires_grad_(True)
        if not self.embeddings:
            model.get_output_embeddings().requires_grad_(False)
            for module in model.modules():  # OPT also has embeddings of positions
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
        # Some vectors are a thousand times as large: biases of keys in Qwen2.5-Coder.
        return [p for p in model.parameters() if p.requires_grad and p.ndim > 1]


class NormsAndBiases(Tuner):
    """Trains all vectors: the weights of norms, and biases."""

    def start(self, model: PreTrainedModel) -> Iterable[Tensor]:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        return [p for p in model.parameters() if p.requires_grad]


class LoRA(Tuner):
    """Trains low-rank adapters at all projections; `finish` merges them into the weights.

    Args:
        rank: of each adapter.
        alpha: an adapter's output is scaled by alpha / rank.

    Source: Hu et al., LoRA (arXiv 2106.09685); the code is the package peft's.
    """

    def __init__(self, relative_lr: Positive, rank: Count, alpha: Count) -> None:
        super().__init__(relative_lr)
        self.rank, self.alpha = rank, alpha

    def start(self, model: PreTrainedModel) -> Iterable[Tensor]:
        from peft import LoraConfig, inject_adapter_in_model  # slow to import

        head = model.get_output_embeddings()
        projections = {
            name: module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=[*projections])
        inject_adapter_in_model(config, model)
        return projections.values()

    def finish(self, model: PreTrainedModel) -> None:
        from peft.tuners.lora import LoraLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
                module.merge()
                model.set_submodule(name, module.get_base_layer())
        super().finish(model)


def without_dropout(model: nn.Module) -> None:
    """Training mode without dropout, so that a resumed run ends with the same weights."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
