"""A killed training goes on from its last checkpoint, as if nothing had happened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric

from ppf.agents import Run
from ppf.agents.checkpoint import Checkpoint
from tests.agents.synthetic import Log, agent, layered, one_process, quadratic


class StoppedError(Exception):
    pass


class Counting(Checkpoint):
    """Notes the iterations that were run."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__(path, every)
        self.run = list[int]()

    def save(self, fabric: Fabric, parts: Mapping[str, Any], iterations: int) -> None:
        super().save(fabric, parts, iterations)
        self.run.append(iterations)


class Stopping(Log):
    """Stops the training at a step."""

    def __call__(self, step: int, metrics: dict) -> None:
        super().__call__(step, metrics)
        if step == 5:
            raise StoppedError


def test_resumes_where_it_was_stopped(tmp_path: Path) -> None:
    def searched(log: Log, checkpoint: Checkpoint | None) -> torch.Tensor:
        learner = agent("ppo", episodes=8, iterations=8)
        return learner.search(quadratic(layered(3)), Run(one_process(), log, 0, checkpoint)).kept

    whole, second = Log(), Log()
    expected = searched(whole, None)
    checkpoint = Counting(tmp_path / "training", 2)
    with pytest.raises(StoppedError):
        searched(Stopping(), checkpoint)
    checkpoint.run.clear()
    assert torch.equal(searched(second, checkpoint), expected)
    assert checkpoint.run == [5, 6, 7, 8]
    assert second == whole, "the checkpoint has what iterations 0 to 3 logged"
    assert not list(tmp_path.iterdir())
