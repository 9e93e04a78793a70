"""What every predictor is given and has to do: the interface behind `predictor=`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.protocol import Prediction
from ppf.pruning import SiteFeatures


class HeldOut(NamedTuple):
    """Policies that a predictor was not fitted to: predicted and measured, nats per token."""

    predicted: Float[Tensor, " rows"]
    std: Float[Tensor, " rows"]
    measured: Float[Tensor, " rows"]
    ratio: Float[Tensor, " rows"]


@dataclass(frozen=True)
class PredictorInputs:
    """What a predictor may use beside labels.

    Args:
        features: of the sites; `features.space` is the space of the policies.
        dense_nll: log-perplexity of the dense model on the labelling part, nats per token.
        measure: log-perplexity of policies on the real model, nats per token; seconds a policy.
        trainer: arguments of Lightning's Trainer.
        seed: of splits and initial weights.
        loggers: that a training reports to.
        progress: show a progress bar.
    """

    features: SiteFeatures
    dense_nll: float
    measure: Callable[[Int[Tensor, "policies sites"]], Float[Tensor, " policies"]]
    trainer: Mapping[str, Any]
    seed: int
    loggers: Sequence[Logger] = ()
    progress: bool = False


class Predictor(ABC):
    """Maps policies to log-perplexity; a search asks it instead of the real model.

    To add one: subclass this in a module of `ppf.predictor`, and name it in a YAML file of
    `conf/predictor` with all its hyper-parameters.

    Attributes:
        needs_labels: whether it is fitted to labels; if not, no policy but the dense one is
            labelled before the search.
        metrics: scores on held-out policies by name, as in "test/kendall"; empty: not scored.
        held_out: the policies that they were computed on; None: not scored.
    """

    needs_labels: ClassVar[bool] = True
    metrics: Mapping[str, float] = {}
    held_out: HeldOut | None = None

    @abstractmethod
    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        """Fits the predictor.

        Args:
            labels: measured policies, the dense one first; some may not be finite.

        Raises:
            PPFError: there are too few labels.
        """

    @abstractmethod
    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        """Mean and standard deviation, on the device of `kept`; 0 if none is estimated."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what `fit` found into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        """Restores what `save` wrote; raises any exception if a file is damaged."""

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Moves the predictor to a device."""
