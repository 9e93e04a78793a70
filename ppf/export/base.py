"""Interface of the formats that `export=` chooses from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
