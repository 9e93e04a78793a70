"""The interface of predictors: their inputs and their methods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.protocol import Prediction
from ppf.predictor.scores import HeldOut
from ppf.pruning import SiteFeatures


@dataclass(frozen=True)
class PredictorInputs:
    """What a predictor may use besides labels.

    Args:
        features: features of the sites; `features.space` is the space of the policies.
        dense_nll: log-perplexity of the dense model on the labelling part, nats per token.
        measure: measures the log-perplexity of policies on the real model, in nats per token.
            A policy takes about a second or more.
        screen: the same on few windows, whose number is the second argument. Nothing is stored.
        changes: estimates how changes of single sites change a policy's loss, in nats per token
            (`ppf.pruning.loss_changes`). Its arguments are the policy, the number of calibration
            windows in a set, the number of sets, and the cap. None: the search covers all ratios,
            or quantises weights.
        trainer: arguments of Lightning's Trainer.
        seed: seed of splits and initial weights.
        loggers: loggers that get the metrics of a training.
        progress: whether a progress bar is shown.
    """

    features: SiteFeatures
    dense_nll: float
    measure: Callable[[Int[Tensor, "policies sites"]], Float[Tensor, " policies"]]
    screen: Callable[[Int[Tensor, "policies sites"], int], Float[Tensor, " policies"]]
    trainer: Mapping[str, Any]
    seed: int
    changes: Callable[[Sequence[int], int, int, float], Float[Tensor, "sites levels"]] | None = None
    loggers: Sequence[Logger] = ()
    progress: bool = False


class Predictor(ABC):
    """Maps policies to log-perplexity; a search uses it in place of the real model.

    To add a predictor: subclass this in a module of `ppf.predictor`, and add a YAML file with all
    its hyper-parameters to `conf/predictor`.

    Attributes:
        needs_labels: whether it is fitted to labels. If not, only the dense policy is labelled
            before the search.
        metrics: scores on held-out policies by name, as in "test/kendall"; empty: not scored.
        held_out: the policies that the scores were computed on; None: not scored.
    """

    needs_labels: ClassVar[bool] = True
    metrics: Mapping[str, float] = {}
    held_out: HeldOut | None = None

    @abstractmethod
    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        """Fits the predictor.

        Args:
            labels: measured policies, the dense one first; their losses may be infinite or NaN.
            inputs: what else the predictor may use.

        Raises:
            PPFError: there are too few labels.
        """

    @abstractmethod
    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        """Mean and standard deviation (0: not estimated), on the device of `kept`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the result of `fit` into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        """Restores what `save` wrote; raises any exception if a file is damaged."""

    def to(self, device: torch.device) -> None:  # noqa: B027
        """Moves the predictor to a device."""
