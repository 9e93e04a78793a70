"""The interface of predictors: their inputs and their methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.utils import instantiate
from jaxtyping import Float, Int
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.protocol import Prediction
from ppf.pruning import SiteFeatures

Changes = Callable[[Sequence[int], int, int, float], Float[Tensor, "sites levels"]]
"""Estimates changes of a policy's loss; see `PredictorInputs.changes`."""


@dataclass(frozen=True)
class PredictorInputs:
    """What a predictor may use besides labels.

    Args:
        features: features of the sites; `features.space` is the space of the policies.
        dense_nll: log-perplexity of the dense model on the labelling part, nats per token.
        measure: measures the log-perplexity of policies on the real model, in nats per token.
            A policy takes about a second or more.
        screen: the same on few windows; further arguments: number of windows, first window.
            Nothing is stored.
        changes: estimates how changes of single sites change a policy's loss, in nats per token
            (`ppf.pruning.loss_changes`). Its arguments are the policy, the number of calibration
            windows in a set, the number of sets, and the cap. None: not available, as in train.py,
            in mode=dynamic, with budget=bytes, and for predictors that need labels.
        trainer: arguments of Lightning's Trainer.
        seed: seed of splits and initial weights.
        loggers: loggers that get the metrics of a training.
        progress: whether a progress bar is shown.
    """

    features: SiteFeatures
    dense_nll: float
    measure: Callable[[Int[Tensor, "policies sites"]], Float[Tensor, " policies"]]
    screen: Callable[[Int[Tensor, "policies sites"], int, int], Float[Tensor, " policies"]]
    trainer: Mapping[str, Any]
    seed: int
    changes: Changes | None = None
    loggers: Sequence[Logger] = ()
    progress: bool = False


@runtime_checkable
class Predictor(Protocol):
    """Maps policies to log-perplexity; a search uses it in place of the real model.

    Any class with these methods will do. If it learns from labels, it also needs those of
    `StoredPredictor`. To add one: write a module of `ppf.predictor`, and a YAML file with all its
    hyper-parameters in `conf/predictor`.

    These members are optional:

    - `needs_labels`: if false, by default only the dense policy is labelled before the search, the
      predictor is fitted in each run, and `save` and `load` may be missing.
    - `exact`: if true, predictions are measurements. Similar policies then have no errors in
      common, so a search measures its best ones, however similar.
    - `held_out` (`HeldOut`) and `metrics`: policies that `fit` did not learn from, and scores on
      them by name, as in "test/kendall". Without them `train.py` needs `test_policies`.
    - `to(device)`: moves the predictor to a device.
    """

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        """Fits the predictor.

        Args:
            labels: measured policies, the dense one first; their losses may be infinite or NaN.
            inputs: what else the predictor may use.

        Raises:
            PPFError: there are too few labels.
        """

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        """Mean and standard deviation (0: not estimated), on the device of `kept`."""


@runtime_checkable
class StoredPredictor(Predictor, Protocol):
    """A predictor whose fit is an artefact, which later runs read."""

    def save(self, folder: Path) -> None:
        """Writes the result of `fit` into an empty folder."""

    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        """Restores what `save` wrote; raises any exception if a file is damaged."""


@dataclass(frozen=True)
class Trained:
    """A fitted predictor, with the folder and the signature of its artefact.

    Args:
        predictor: a `Predictor`.
    """

    predictor: Any
    folder: Path
    signature: str


def needs_labels(predictor: object) -> bool:
    """Whether a predictor is fitted to labels of random policies."""
    return bool(getattr(predictor, "needs_labels", True))


def drawn_labels(cfg: DictConfig) -> int:
    """Policies that are drawn and labelled before a search, the dense one included."""
    if cfg.labels.count is not None:
        return int(cfg.labels.count)
    predictor = cfg.get("predictor")
    return _DRAWN if predictor and needs_labels(unfitted(predictor)) else 1


def unfitted(config: Mapping[str, Any]) -> Predictor:
    """The predictor of a config."""
    made: Predictor = instantiate(config)
    return made


_DRAWN = 128  # policies that are labelled for a predictor that needs labels
