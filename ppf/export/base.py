"""Interface of the formats that `export=` chooses from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.export.pruned import Pruned

WindowsOf = Callable[[], Int[Tensor, "windows window"]]  # only formats that need a text call it


class Exporter(ABC):
    """Writes pruned models in one format."""

    def weighted(self, model: Pruned, windows: WindowsOf) -> "Exporter":
        """The same, or one that rounds those weights more exactly that matter more on a text."""
        return self

    def check(self, model: Pruned) -> None:  # noqa: B027 - most formats hold every model
        """Raises PPFError if the format cannot hold a model."""

    def bytes(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
        """Size of a model's weights in this format, with what their file also holds.

        Args:
            model: its weights may be on the meta device.
        """
        return sum(p.numel() * p.element_size() for p in model.parameters())

    def bytes_per_weight(self, model: PreTrainedModel) -> float:
        """Bytes of a weight of the matrices that are pruned."""
        return float(next(model.parameters()).element_size())

    @abstractmethod
    def write(self, model: Pruned, folder: Path, policy: Mapping[str, Any]) -> Path:
        """Writes the model, its policy and a model card.

        Args:
            folder: created if it is missing; files of the same names are replaced.
            policy: the contents of policy.json; empty: the model is dense. It then gets neither a
                policy.json nor a model card.

        Returns:
            Path of what was written.

        Raises:
            PPFError: the format does not support the model.
        """
