"""The inputs of a recovery, from its config."""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import Fabric
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ppf.artefacts import signature
from ppf.conf import plain
from ppf.digests import with_code
from ppf.errors import PPFError, out_of_memory
from ppf.llm import LanguageModel
from ppf.llm.loading import check_window
from ppf.processes import trainer_identity
from ppf.progress import say
from ppf.recovery.curve import Trace
from ppf.recovery.losses import RecoveryLoss
from ppf.recovery.results import Recovered, RecoveryScore
from ppf.recovery.settings import Machine, RecoverySettings, TrainingRun
from ppf.recovery.tuners import Tuner
from ppf.text.identity import (
    documents_identity,
    file_identity,
    text_identity,
    warn_of_shared_documents,
)
from ppf.text.parts import PartName, Text, build_text, text_name
from ppf.text.training import build_training_text, training_text

T = TypeVar("T")
_PARTS: tuple[PartName, ...] = ("training", "validation")
_COSTS = ("micro_batch", "gradient_checkpointing")  # change the result only by rounding


def machine_of(cfg: DictConfig, fabric: Fabric) -> Machine:
    """Fabric's processes and devices, for Lightning's Trainer."""
    devices = plain(cfg.fabric)
    where = {k: devices[k] for k in ("accelerator", "devices", "num_nodes")}
    loggers = [logger for logger in fabric.loggers if isinstance(logger, Logger)]
    trainer = plain(cfg.trainer) | where
    return Machine(fabric, trainer, loggers)


def in_float32(cfg: DictConfig) -> DictConfig:
    """The config with `dtype=float32`, in which weights are trained."""
    return OmegaConf.create({**cfg, "dtype": "float32"})


def losses_of(cfg: DictConfig) -> dict[str, RecoveryLoss]:
    """The losses of `loss=` by name."""
    return {str(name): instantiate(loss) for name, loss in cfg.loss.items()}


def tuner_of(cfg: DictConfig, name: str) -> Tuner:
    """A tuner of `tune=`."""
    tuner: Tuner = instantiate(cfg.tune[name])
    return tuner


def loss_names(cfg: DictConfig) -> list[str]:
    """The losses that the training minimises; none if no tuner reads them."""
    read = cfg.get("search") or any(tuner_of(cfg, name).reads_losses for name in cfg.tune)
    return list(map(str, cfg.loss)) if read else []


def check_batch(cfg: DictConfig, fabric: Fabric) -> None:
    """Raises PPFError if the batch cannot be shared among the processes."""
    batch, at_once = cfg.recovery.batch, cfg.recovery.micro_batch * fabric.world_size
    if batch % at_once:
        raise PPFError(
            f"recovery.batch={batch} is not a multiple of {at_once}, which is recovery.micro_batch"
            " times the number of processes: give"
            f" recovery.batch={at_once * math.ceil(batch / at_once)}."
        )


class RecoveryText:
    """The windows that a recovery reads.

    Args:
        cfg: the config of the recovery.
        found_with: the config that the policy was found with. Documents of its test part are left
            out, as are those of the test part of `cfg`.
    """

    def __init__(self, cfg: DictConfig, found_with: DictConfig) -> None:
        self.cfg, self.found_with = cfg, found_with
        if cfg.report_test:
            warn_of_shared_documents(cfg, found_with)
        self._windows: list[Tensor] | None = None

    def check(self, _: Text, lm: LanguageModel) -> None:
        """Refuses too little text; see `EarlyCheck`."""
        self.windows(lm)
        test_windows(self.cfg, lm)

    def windows(self, lm: LanguageModel) -> list[Int[Tensor, "windows window"]]:
        """The windows of the parts training and validation.

        Args:
            lm: the pruned or the dense model; its tokenizer and its longest window matter.

        Raises:
            PPFError: the text is too short, or the windows are too long for the model.
        """
        if self._windows is None:
            self._windows = self._read(lm)
        return self._windows

    def _read(self, lm: LanguageModel) -> list[Int[Tensor, "windows window"]]:
        cfg = self.cfg
        check_window(cfg.text.window, lm.model.config)
        texts = [build_text(given.text, cfg.paths.cache) for given in self._tested()]
        own, *others = [text.parts.get("test", []) for text in texts]
        foreign = list(chain.from_iterable(others))
        text = build_training_text(cfg.text, cfg.paths.cache, [*own, *foreign], foreign)
        windows = [text.tokens(part, lm.tokenizer) for part in _PARTS]
        if len(windows[0]) < cfg.recovery.batch:
            raise PPFError(
                f"the training part of text={text_name(cfg.text)} has {len(windows[0])} windows,"
                f" fewer than recovery.batch={cfg.recovery.batch}: lower recovery.batch, or give a"
                " longer text."
            )
        return windows

    def _tested(self) -> list[DictConfig]:
        """The configs whose test parts are left out: `cfg`, and `found_with` if it has another."""
        own, other = (documents_identity(x, "test") for x in (self.cfg, self.found_with))
        return [self.cfg] if own == other else [self.cfg, self.found_with]

    def identity(self) -> list[Any]:
        """What determines the windows."""
        cfg, more = self.cfg, plain(self.cfg.text.training.more)
        own = OmegaConf.create({"text": training_text(cfg.text), "paths": cfg.paths})
        found: list[Any] = [text_identity(own, part) for part in _PARTS]
        found += [documents_identity(given, "test") for given in self._tested()]
        if path := more.pop("path"):
            cache = Path(cfg.paths.cache)
            found.append({**more, **file_identity(path, "text.training.more.path", cache)})
        return found


def test_windows(cfg: DictConfig, lm: LanguageModel) -> list[Int[Tensor, "windows window"]]:
    """The windows of the test part; empty unless `cfg.report_test` asks for them."""
    text = build_text(cfg.text, cfg.paths.cache)
    return [text.tokens("test", lm.tokenizer)] if cfg.report_test else []


def recovered_of(
    fitted: Trace, scores: Sequence[RecoveryScore], test: Sequence[RecoveryScore]
) -> Recovered:
    """The result of a recovery; arguments as for `Recovered`."""
    curve = [(point.tokens, point.value) for point in fitted.curve]
    return Recovered(scores, test, fitted.tokens, fitted.seconds / 60, curve)


def run_of(
    text: RecoveryText,
    machine: Machine,
    settings: RecoverySettings,
    *trained: Any,
    reads_losses: bool = True,
) -> TrainingRun:
    """A training. Its folder is named by a hash of everything that determines it.

    Args:
        reads_losses: whether it depends on `cfg.loss`.
        trained: plain values that determine the model and what is trained of it.
    """
    cfg = text.cfg
    recovery = {key: value for key, value in asdict(settings).items() if key not in _COSTS}
    trainer = trainer_identity(cfg.trainer)
    losses = with_code(plain(cfg.loss), Path(cfg.paths.cache)) if reads_losses else {}
    parts = (text.identity(), losses, recovery, trainer, cfg.seed, *trained)
    folder = Path(cfg.paths.artefacts) / "recovery" / signature("recovery", *parts)
    return TrainingRun(settings, machine, folder, cfg.text.window, cfg.seed)


def with_enough_memory(cfg: DictConfig, fabric: Fabric, work: Callable[[RecoverySettings], T]) -> T:
    """The result of `work`, which is repeated with half the micro-batch if memory runs out.

    Raises:
        PPFError: memory runs out in one of several processes, since the others wait for it.
        RuntimeError: the memory does not suffice for one window.
    """
    settings = RecoverySettings(**cfg.recovery)
    while True:
        try:
            return work(settings)
        except (RuntimeError, MemoryError) as error:
            if settings.micro_batch == 1 or not out_of_memory(error):
                raise
            smaller = settings.halved(fabric.world_size)
            if fabric.world_size > 1:
                raise PPFError(
                    f"a process ran out of memory: give recovery.micro_batch={smaller.micro_batch}."
                ) from error
        settings = smaller
        say(f"Out of memory: going on with {settings.micro_batch} windows at a time.")
        gc.collect()  # the Trainer, its module and its optimizer refer to each other
        torch.cuda.empty_cache()
