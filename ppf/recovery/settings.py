"""Settings of a training: the config's section, the steps, the machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Fabric
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel


@dataclass(frozen=True)
class RecoverySettings:
    """The section `recovery` of recover.yaml, whose comments explain the keys."""

    tokens: int
    batch: int
    micro_batch: int
    warmup: float
    weight_decay: float
    validate_every: int
    patience: int | None
    ema: float
    gradient_checkpointing: bool

    def epoch(self, window: int) -> int:
        """Steps between two validations, which are an epoch of the Trainer."""
        return min(self.validate_every, self._steps(window))

    def epochs(self, window: int) -> int:
        """Number of epochs."""
        return ceil(self._steps(window) / self.epoch(window))

    def halved(self, processes: int) -> "RecoverySettings":
        """The same with at most half as many windows in the memory of each process."""
        smaller = range(self.micro_batch // 2, 0, -1)
        fits = (n for n in smaller if self.batch % (n * processes) == 0)
        return replace(self, micro_batch=next(fits, 1))

    def _steps(self, window: int) -> int:
        return max(ceil(self.tokens / (self.batch * window)), 1)


def computed_in(precision: str) -> torch.dtype:
    """The number format in which Lightning computes.

    Args:
        precision: as Lightning names it, for example "bf16-mixed".
    """
    names = {"bf16": torch.bfloat16, "16": torch.float16}
    return names.get(precision.partition("-")[0], torch.float32)


class Optimization(NamedTuple):
    """Arguments of the optimizer and its schedule.

    Args:
        lr: largest learning rate.
        weight_decay: of AdamW.
        warmup: steps in which the learning rate rises from 0.
        steps: of the whole training; at its end the learning rate is 0.
    """

    lr: float
    weight_decay: float
    warmup: int
    steps: int


@dataclass(frozen=True)
class Machine:
    """Where recovery training runs.

    Args:
        ranks: the processes of the run, which are started already.
        trainer: arguments of Lightning's Trainer, with the devices.
        loggers: of the run.
    """

    ranks: Fabric
    trainer: dict[str, Any]
    loggers: Sequence[Logger]

    @property
    def precision(self) -> str:
        """Number format of the computation, as Lightning names it."""
        return str(self.trainer.get("precision") or "32-true")

    def autocast(self, model: PreTrainedModel) -> torch.autocast:
        """Runs a float32 model in the number format of the training."""
        dtype = computed_in(self.precision)
        enabled = dtype != model.dtype == torch.float32
        return torch.autocast(model.device.type, dtype, enabled=enabled)


@dataclass(frozen=True)
class TrainingRun:
    """One run of recovery training.

    Args:
        settings: steps, batches and validations.
        machine: where it runs.
        folder: of its checkpoints.
        window: tokens in a window.
        seed: of the windows' order.
        first: steps of earlier trainings in this recovery, whose windows it does not read again.
        name: precedes the names of logged metrics, as in "layer-3/"; empty if nothing else is
            trained in this recovery.
    """

    settings: RecoverySettings
    machine: Machine
    folder: Path
    window: int
    seed: int
    first: int = 0
    name: str = ""

    @property
    def step(self) -> int:
        """Tokens in a step."""
        return self.settings.batch * self.window

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training, if it does not end early."""
        return self.settings.epoch(self.window) * self.settings.epochs(self.window)

    def optimization(self, lr: float) -> Optimization:
        """The optimizer's arguments for a largest learning rate."""
        warmup = round(self.settings.warmup * self.steps)
        return Optimization(lr, self.settings.weight_decay, warmup, self.steps)

    def part(self, name: str) -> "TrainingRun":
        """The same for a part of the model, with checkpoints of its own."""
        return replace(self, folder=self.folder / name, name=f"{self.name}{name}/")
