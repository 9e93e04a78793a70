"""Interface of the formats that `export=` chooses from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppf.errors import PPFError
from ppf.export.pruned import Pruned
from ppf.llm import LanguageModel
from ppf.progress import say
from ppf.pruning import LivePruner


class Exporter(ABC):
    """Writes pruned models in one format."""

    def check_family(self, lm: LanguageModel, *, biases: bool) -> None:
        """Raises PPFError if the format supports no policy of the model; called before any work.

        Args:
            biases: whether the compensation adds biases.
        """
        check_blocks(lm)

    def check_policy(self, kept: Mapping[str, int], whole: Mapping[str, int]) -> None:  # noqa: B027
        """Raises PPFError if the format supports no model of the policy; called before any work.

        Args:
            kept: number of units of each site, by the site's name.
            whole: the same of the dense model.
        """

    def check(self, pruner: LivePruner) -> None:
        """Raises PPFError if the format cannot hold the pruned model; called before long work."""
        check_blocks(pruner.lm)

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


class Converter(Exporter):
    """A format that needs only the model, so exported folders can be converted to it too."""

    @abstractmethod
    def check_model(self, model: Pruned) -> None:
        """As `check`."""

    @abstractmethod
    def write_model(self, model: Pruned, folder: Path, policy: Mapping[str, Any]) -> Path:
        """As `write`."""

    def check(self, pruner: LivePruner) -> None:
        super().check(pruner)
        self.check_model(Pruned.of(pruner))

    def write(self, pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> Path:
        return self.write_model(Pruned.of(pruner), folder, policy)


def tell_rounding(policy: Mapping[str, Any]) -> None:
    """Prints that the format stores rounded weights in no fewer bits, if the policy rounds any."""
    if policy.get("types"):
        say(
            "The policy quantises weights. Only export=gguf stores them in fewer bits; this folder"
            " stores the rounded values in the number format that dtype= names."
        )


def check_blocks(lm: LanguageModel) -> None:
    """Raises PPFError if a layer has several blocks of one kind: no format supports that."""
    for coupling in lm.couplings:
        if coupling.index:
            raise PPFError(
                f"no export format supports several blocks of one kind in a layer, such as"
                f" {coupling.name}: use serve, which keeps the model in memory."
            )
