"""Checkpoints of an agent's training, so that a killed search can resume."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric

from ppf.artefacts import draft, read_if_whole


class Checkpoint:
    """The checkpoint of one training. Each rank has its own file of plain values and tensors.

    Args:
        path: path of the files, without the rank. It must be unique for each training.
        every: iterations between two writes.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def load(self, fabric: Fabric, parts: Mapping[str, Any]) -> int:
        """Restores the parts and torch's random generators.

        Returns:
            Number of finished iterations. It is 0, and nothing is restored, if a file is missing or
            damaged, or if the files of the ranks have different numbers of iterations.
        """
        load = partial(torch.load, map_location=fabric.device, weights_only=True)
        stored = read_if_whole(self._file(fabric), load) or {"iterations": 0}
        behind = fabric.all_gather(torch.tensor(stored["iterations"]))
        assert isinstance(behind, torch.Tensor)
        behind = behind.flatten()
        if not (behind == behind[0]).all() or not behind[0]:
            return 0
        for name, part in parts.items():
            part.load_state_dict(stored["parts"][name])
        torch.set_rng_state(stored["generators"]["cpu"].cpu())
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(stored["generators"]["cuda"].cpu(), fabric.device)
        return int(behind[0])

    def save(self, fabric: Fabric, parts: Mapping[str, Any], iterations: int) -> None:
        """Replaces this rank's file at every `every`-th iteration."""
        if iterations % self.every:
            return
        generators = {"cpu": torch.get_rng_state()}
        if fabric.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(fabric.device)
        states = {name: part.state_dict() for name, part in parts.items()}
        stored = {"iterations": iterations, "parts": states, "generators": generators}
        with draft(self._file(fabric)) as file:
            torch.save(stored, file)

    def remove(self, fabric: Fabric) -> None:
        """Deletes this rank's file, when the training has ended."""
        self._file(fabric).unlink(missing_ok=True)

    def _file(self, fabric: Fabric) -> Path:
        return self.path.with_suffix(f".{fabric.global_rank}.ckpt")
