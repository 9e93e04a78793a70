"""A training's settings, the sections of recover.yaml, and where it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from lightning import Fabric
from torch import Tensor

from ppf.errors import PPFError
from ppf.ranges import Count, Positive, Tokens


@dataclass(frozen=True)
class RecoverySettings:
    """The section `recovery`: how much is read, and how often it is validated.

    Args:
        tokens: that the training reads.
        batch: windows in an optimiser step, over all processes.
        micro_batch: windows that one process reads at a time.
        validate_every: steps between two validations.
    """

    tokens: Tokens
    batch: Count
    micro_batch: Count
    validate_every: Count

    def accumulated(self, processes: int) -> int:
        """Micro-batches of one process in an optimiser step.

        Raises:
            PPFError: the batch cannot be shared among the processes.
        """
        at_once = self.micro_batch * processes
        if self.batch % at_once:
            raise PPFError(
                f"recovery.batch={self.batch} is not a multiple of {at_once}, which is"
                " recovery.micro_batch times the number of processes: give"
                f" recovery.batch={at_once * ceil(self.batch / at_once)}."
            )
        return self.batch // at_once


@dataclass(frozen=True)
class TrainerSettings:
    """The section `trainer`: arguments of Lightning's Trainer.

    Args:
        precision: number format of the computation; the trained weights are in float32.
        gradient_clip_val: largest norm of the gradient.
    """

    precision: Literal["bf16-mixed", "32-true"]
    gradient_clip_val: Positive

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the computation."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32


class Windows(NamedTuple):
    """What a training reads.

    Args:
        training: windows to train on.
        validation: windows that decide which weights are kept.
    """

    training: Int[Tensor, "windows window"]
    validation: Int[Tensor, "few window"]


@dataclass(frozen=True)
class TrainingRun:
    """One training.

    Args:
        settings: its length and batches.
        trainer: number format, clipping and logging.
        fabric: the processes, which are started already.
        devices: `accelerator`, `devices` and `num_nodes` of the Trainer, as Fabric has them.
        folder: of its checkpoints.
        windows: that it reads.
        seed: of the windows' order, and of what a tuner draws.
    """

    settings: RecoverySettings
    trainer: TrainerSettings
    fabric: Fabric
    devices: Mapping[str, Any]
    folder: Path
    windows: Windows
    seed: int

    @property
    def step(self) -> int:
        """Tokens in an optimiser step."""
        return self.settings.batch * self.windows.training.shape[1]

    @property
    def epoch(self) -> int:
        """Steps between two validations, which are an epoch of the Trainer."""
        return min(self.settings.validate_every, ceil(self.settings.tokens / self.step))

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return ceil(ceil(self.settings.tokens / self.step) / self.epoch)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epoch * self.epochs


class Point(NamedTuple):
    """The state of a training at a validation.

    Args:
        tokens: read so far.
        nll: mean negative log-likelihood on the validation part, nats per token.
        seconds: of training so far; time that a killed run spent after its last checkpoint is not
            counted.
    """

    tokens: int
    nll: float
    seconds: float
