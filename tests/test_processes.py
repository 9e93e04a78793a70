"""Several processes of one run: who waits how long, and who prints."""

from datetime import timedelta

import pytest
from hydra.utils import instantiate
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy

from ppf import progress
from ppf.processes import processes_here
from tests.composing import command_config


def fabric(*overrides: str) -> Fabric:
    return instantiate(command_config("collect", list(overrides)).fabric)


def test_ranks_wait_for_hours() -> None:
    two = fabric("fabric.devices=2")
    assert isinstance(two.strategy, DDPStrategy) and two.world_size == 2
    assert two.strategy._timeout == timedelta(hours=48)


def test_the_processes_on_one_machine_are_counted() -> None:
    assert processes_here(fabric()) == 1
    assert processes_here(fabric("fabric.devices=2")) == 2
    assert processes_here(fabric("fabric.devices=2", "fabric.num_nodes=3")) == 2


def test_one_process_forms_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")  # Lightning refuses this without tasks per node
    assert fabric().world_size == 1
    assert not isinstance(fabric().strategy, DDPStrategy)


def test_silent_ranks_still_warn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.console, "quiet", True)
    progress.say("one")
    assert list(progress.track([1, 2], "two")) == [1, 2]
    progress.warning("three")
    assert capsys.readouterr().out == "Warning: three\n"
