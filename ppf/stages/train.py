"""train: the predictor, fitted to labelled policies or found by its signature."""

from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.artefacts import get_or_make, signature
from ppf.labels.table import Labels
from ppf.predictor.base import Predictor, PredictorInputs
from ppf.progress import console, say
from ppf.stages.collect import measure
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import file_digest, plain, require

_MACHINE = ("accelerator", "devices", "num_nodes", "strategy")  # where, not what, is trained


@dataclass(frozen=True)
class Trained:
    """A predictor, and where its artefact lies."""

    predictor: Predictor
    folder: Path
    signature: str


def needs_labels(cfg: DictConfig) -> bool:
    """Whether the config's predictor is fitted to labels."""
    return instantiate(cfg.predictor).needs_labels


def train(context: PruningContext, labels: Labels, *, upstream: bool = False) -> Trained:
    """The predictor of the config and these labels; rank 0 trains it if it is missing.

    Other ranks wait: the networks are small and see all labels at once, and the Gaussian process
    is fitted in closed form, so that several devices would gain nothing.

    Args:
        labels: the dense policy's first.
        upstream: called by a later stage, which `upstream=require` forbids to train.
    """
    cfg, fabric = context.cfg, context.fabric
    name = predictor_signature(cfg, context.signatures.labels, labels)
    folder = Path(cfg.paths.artefacts) / "predictor" / name
    inputs, reused = _inputs(context, labels), True  # all ranks compute the features together

    def make(draft: Path) -> None:
        nonlocal reused
        reused = False
        if upstream:
            require(cfg, "predictor", "python train.py")
        say(f"Training the predictor on {len(labels)} labels.")
        fresh: Predictor = instantiate(cfg.predictor)
        fresh.fit(labels, inputs)
        draft.mkdir()
        fresh.save(draft)

    def read(path: Path) -> Predictor:
        stored: Predictor = instantiate(cfg.predictor)
        stored.load(path, inputs)
        return stored

    predictor: Predictor = instantiate(cfg.predictor)
    if predictor.needs_labels:
        predictor = get_or_make(folder, read=read, make=make, ranks=fabric)
        if reused:
            say(f"Reusing the predictor in {folder}.")
    else:
        predictor.fit(labels, inputs)
    predictor.to(fabric.device)
    return Trained(predictor, folder, name)


def _inputs(context: PruningContext, labels: Labels) -> PredictorInputs:
    return PredictorInputs(
        context.features,
        float(labels.nll[0]),
        lambda kept: measure(context, kept, "oracle").nll,
        plain(context.cfg.trainer),
        context.cfg.seed,
        [logger for logger in context.fabric.loggers if isinstance(logger, Logger)],
        console.is_terminal,
    )


def predictor_signature(cfg: DictConfig, label_name: str, labels: Labels) -> str:
    """Hashes what determines a predictor.

    Args:
        label_name: signature of the labels' store.
    """
    predictor = plain(cfg.predictor)
    if predictor.get("init_from"):
        predictor["init_from"] = file_digest(cfg, "predictor.init_from")
    policies = (labels.kept.tolist(), labels.proposed.tolist(), labels.acquired.tolist())
    trainer = {key: value for key, value in plain(cfg.trainer).items() if key not in _MACHINE}
    return signature("predictor", label_name, policies, predictor, trainer, cfg.seed)
