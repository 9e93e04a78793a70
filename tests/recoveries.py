"""Recoveries of the tiny model that take a second, and trainings that are killed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from ppf.cli.checks import check
from ppf.export.loading import load_folder
from tests.composing import command_config


class KilledError(Exception):
    """Ends a training as a kill does, between two steps."""


def quick(searched: Path, cache: str) -> list[str]:
    """Overrides of `recover.py`.

    Args:
        searched: a folder that `tests.searched` has written.
    """
    return [
        f"text.path={searched}/text.txt",
        "text.window=32",
        "text.training.windows.validation=4",
        "recovery.batch=4",
        "recovery.micro_batch=2",
        "trainer.precision=32-true",
        f"paths.cache={cache}",
    ]


def recovery_config(searched: Path, cache: str, folder: Path, *overrides: str) -> DictConfig:
    """The config of a recovery in `folder`, which has passed the checks of the command."""
    given = [*quick(searched, cache), f"paths.run={folder}", *overrides]
    cfg = command_config("recover", given)
    check(cfg)
    return cfg


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a recovered model's folder."""
    return load_folder(Path(folder), torch.float32)[0].state_dict()


def kill(monkeypatch: pytest.MonkeyPatch, module: Any, *calls: int) -> list[int]:
    """Kills trainings of a LightningModule at some calls of its training step.

    Args:
        calls: counted from 1, over all trainings.

    Returns:
        The numbers of the calls so far; it grows with each call.
    """
    step, taken = module.training_step, list[int]()

    def interrupted(self: Any, *given: Any) -> torch.Tensor:
        taken.append(len(taken) + 1)
        if taken[-1] in calls:
            raise KilledError
        return step(self, *given)

    monkeypatch.setattr(module, "training_step", interrupted)
    return taken
