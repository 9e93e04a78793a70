"""Runs Lightning's Trainer: steps, checkpoints, early stop, resumption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.errors import PPFError
from ppf.progress import console, quiet_trainer, say
from ppf.ranks import Ranks
from ppf.recovery.data import Order, loader
from ppf.recovery.losses import Loss
from ppf.recovery.module import MONITOR, RecoveryModule, Teacher
from ppf.recovery.tuners import Tuner


@dataclass(frozen=True)
class RecoverySettings:
    """The section `recovery` of recover.yaml, whose comments explain the keys."""

    tokens: int
    batch: int
    micro_batch: int
    warmup: float
    weight_decay: float
    validate_every: int
    patience: int
    ema: float
    gradient_checkpointing: bool


@dataclass(frozen=True)
class Machine:
    """Where a training runs.

    Args:
        ranks: processes of the run, which are started already.
        rank: number of this one.
        count: of processes.
        trainer: arguments of Lightning's Trainer, with the devices.
        loggers: of the run.
    """

    ranks: Ranks
    rank: int
    count: int
    trainer: dict[str, Any]
    loggers: Sequence[Logger]


@dataclass(frozen=True)
class Schedule:
    """Steps of one training, in epochs of the Trainer; each ends with a validation."""

    epochs: int
    each: int

    @classmethod
    def of(cls, settings: RecoverySettings, window: int) -> "Schedule":
        steps = ceil(settings.tokens / (settings.batch * window))
        each = min(settings.validate_every, steps)
        return cls(ceil(steps / each), each)

    @property
    def steps(self) -> int:
        return self.epochs * self.each


def fit(
    student: PreTrainedModel,
    teacher: Teacher,
    losses: Mapping[str, Loss],
    tuner: Tuner,
    training: Int[Tensor, "windows window"],
    validation: Int[Tensor, "few window"],
    settings: RecoverySettings,
    machine: Machine,
    folder: Path,
    seed: int,
) -> int:
    """Trains the student in place, from the last checkpoint in `folder` if there is one.

    The student ends with the weights that were best on the validation windows.

    Returns:
        Number of tokens that were read.

    Raises:
        PPFError: the loss is not finite, or the batch cannot be shared among the processes.
        torch.OutOfMemoryError: the micro-batch is too large.
    """
    window = training.shape[1]
    schedule = Schedule.of(settings, window)
    without_dropout(student)
    tuner.start(student)
    if settings.gradient_checkpointing:
        enable = getattr(student, "activation_checkpointing_enable", None)  # its name since 5.24
        (enable or student.gradient_checkpointing_enable)({"use_reentrant": False})
    module = RecoveryModule(
        student,
        teacher,
        losses,
        lr=tuner.lr,
        weight_decay=settings.weight_decay,
        warmup=round(settings.warmup * schedule.steps),
        steps=schedule.steps,
    )
    finished = folder / "finished.ckpt"
    if not finished.is_file():
        order = Order(
            len(training),
            batch=settings.batch,
            steps=schedule.each,
            seed=seed,
            rank=machine.rank,
            ranks=machine.count,
        )
        last = folder / "last.ckpt"
        with quiet_trainer():
            _trainer(settings, schedule, machine, folder).fit(
                module,
                loader(training, order, settings.micro_batch),
                loader(validation, None, settings.micro_batch),
                ckpt_path=last if last.is_file() else None,
            )
        if machine.ranks.is_global_zero:
            (folder / "best.ckpt").rename(finished)
            last.unlink()
        machine.ranks.broadcast(None)
    stored = torch.load(finished, map_location="cpu", weights_only=True)
    module.load_state_dict(stored["state_dict"])
    student.eval()
    tuner.finish(student)
    return stored["global_step"] * settings.batch * window


def without_dropout(model: nn.Module) -> None:
    """Training mode without random numbers, so that a resumed run ends with the same weights."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _trainer(
    settings: RecoverySettings, schedule: Schedule, machine: Machine, folder: Path
) -> Trainer:
    at_once = settings.micro_batch * machine.count
    if settings.batch % at_once:
        nearest = at_once * ceil(settings.batch / at_once)
        raise PPFError(
            f"recovery.batch={settings.batch} is not a multiple of recovery.micro_batch times"
            f" {machine.count} processes: give recovery.batch={nearest}."
        )
    environment = _Running() if machine.count > 1 else LightningEnvironment()
    own = {
        "plugins": environment,
        "max_epochs": schedule.epochs,
        "accumulate_grad_batches": settings.batch // at_once,
        "logger": list(machine.loggers),
        "callbacks": _callbacks(settings, schedule, folder),
        "enable_progress_bar": console.is_terminal and not console.quiet,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
        "default_root_dir": folder,
    }
    return Trainer(**{**machine.trainer, **own})


def _callbacks(settings: RecoverySettings, schedule: Schedule, folder: Path) -> list[Callback]:
    """The average first and the checkpoints last: these store what the others know."""
    # Lightning leaves averages out of checkpoints without optimizer states.
    best = ModelCheckpoint(
        folder,
        "best",
        MONITOR,
        save_weights_only=not settings.ema,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    average = [EMAWeightAveraging(use_buffers=False, decay=settings.ema)] if settings.ema else []
    bar = [RichProgressBar()] if console.is_terminal and not console.quiet else []
    stop = EarlyStopping(MONITOR, patience=settings.patience)
    return [*average, *bar, _Lines(schedule.steps), stop, best, last]


class _Lines(Callback):
    """Prints one line after each validation."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        nll = float(trainer.callback_metrics[MONITOR])
        say(
            f"Recovery: step {trainer.global_step} of {self.steps},"
            f" {nll:.4f} nats per token on the validation part."
        )


class _Running(LightningEnvironment):
    """Processes that Fabric has started; the Trainer starts no others."""

    @property
    def creates_processes_externally(self) -> bool:
        return True
