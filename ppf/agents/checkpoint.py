"""Where a training is kept, so that a killed one goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import Fabric
from torch import Tensor

from ppf.artefacts import draft, read_if_whole


@runtime_checkable
class Stateful(Protocol):
    """Modules, optimizers, schedules, buffers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Checkpoint:
    """One training's file, of which each rank has its own; plain values and tensors only.

    Args:
        path: named by what determines the training, so that no other one is resumed.
        every: iterations between two writes.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def load(self, fabric: Fabric, parts: Mapping[str, Stateful]) -> int:
        """Restores the parts and torch's generators; returns the iterations that are behind them.

        Nothing is restored if there is no file, if it is damaged, or if ranks were killed between
        writes.
        """
        stored = read_if_whole(self._file(fabric), _load) or {"iterations": 0}
        behind = fabric.all_gather(torch.tensor(stored["iterations"]))
        assert isinstance(behind, torch.Tensor)
        behind = behind.flatten()
        if not (behind == behind[0]).all() or not behind[0]:
            return 0
        for name, part in parts.items():
            part.load_state_dict(stored["parts"][name])
        _restore_generators(stored["generators"], fabric.device)
        return int(behind[0])

    def save(self, fabric: Fabric, parts: Mapping[str, Stateful], iterations: int) -> None:
        """Replaces this rank's file, where a write is due."""
        if iterations % self.every:
            return
        stored = {
            "iterations": iterations,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "generators": _generators(fabric.device),
        }
        with draft(self._file(fabric)) as file:
            torch.save(stored, file)

    def remove(self, fabric: Fabric) -> None:
        """The training is done."""
        self._file(fabric).unlink(missing_ok=True)

    def _file(self, fabric: Fabric) -> Path:
        return self.path.with_suffix(f".{fabric.global_rank}.ckpt")


def _generators(device: torch.device) -> dict[str, Tensor]:
    """States of the CPU's generator and, if it has its own, the device's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)
