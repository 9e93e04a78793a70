"""Interface of the formats that `export=` chooses from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppf.errors import PPFError
from ppf.llm import LanguageModel
from ppf.pruning import LivePruner


class Exporter(ABC):
    """Writes pruned models in one format."""

    @abstractmethod
    def check(self, lm: LanguageModel) -> None:
        """Raises PPFError if the format does not support the model; called before long work."""

    @abstractmethod
    def write(self, pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> Path:
        """Writes the model at its present policy.

        Args:
            folder: created if it is missing.
            policy: the contents of policy.json.

        Returns:
            Path of what was written.

        Raises:
            PPFError: the format does not support the model.
        """


def check_blocks(lm: LanguageModel) -> None:
    """Raises PPFError if a layer has several blocks of one kind: formats hold one width of each."""
    for coupling in lm.couplings:
        if coupling.index:
            raise PPFError(
                f"no format holds models with several blocks of one kind in a layer, such as"
                f" {coupling.name}: keep the model in memory with serve.py instead."
            )
