"""Which weights recovery training changes, the options of `tune=`."""

from abc import ABC, abstractmethod

from torch import nn
from transformers import PreTrainedModel

from ppf.ranges import Count, Positive


class Tuner(ABC):
    """Chooses what is trained.

    Args:
        lr: largest learning rate.
    """

    def __init__(self, lr: Positive) -> None:
        self.lr = lr

    @abstractmethod
    def start(self, model: PreTrainedModel) -> None:
        """Makes the parameters that are trained require gradients, and no others."""

    def finish(self, model: PreTrainedModel) -> None:
        """Undoes all that `start` added to the model, and keeps what was learnt."""
        model.requires_grad_(False)


class Full(Tuner):
    """Trains all weights."""

    def start(self, model: PreTrainedModel) -> None:
        model.requires_grad_(True)


class NormsAndBiases(Tuner):
    """Trains all vectors: the weights of norms, and biases."""

    def start(self, model: PreTrainedModel) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)


class LoRA(Tuner):
    """Trains low-rank adapters at all projections; `finish` merges them into the weights.

    Args:
        rank: of each adapter.
        alpha: an adapter's output is scaled by alpha / rank.

    Source: Hu et al., LoRA (arXiv 2106.09685); the code is the package peft's.
    """

    def __init__(self, lr: Positive, rank: Count, alpha: Count) -> None:
        super().__init__(lr)
        self.rank, self.alpha = rank, alpha

    def start(self, model: PreTrainedModel) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # slow to import

        head = model.get_output_embeddings()
        projections = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=projections)
        inject_adapter_in_model(config, model)

    def finish(self, model: PreTrainedModel) -> None:
        from peft.tuners.lora import LoraLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
                module.merge()
                model.set_submodule(name, module.get_base_layer())
        super().finish(model)
