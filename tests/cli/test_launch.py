"""Processes that would not work together are refused before the work starts."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from unittest import mock

import pytest
from omegaconf import DictConfig

from ppf.cli.launch import check_processes
from ppf.errors import PPFError
from ppf.processes import is_alone
from tests.composing import command_config

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0"}
OF_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "MASTER_", "LT_", "SUBMITIT_")


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(OF_LAUNCHERS)]:
            del os.environ[name]
        yield monkeypatch


@cache
def composed() -> DictConfig:
    return command_config("search", ["fabric=cpu"])


def check(devices: int, nodes: int = 1, *, one_process: bool = False) -> None:
    cfg = composed().copy()
    cfg.merge_with({"fabric": {"devices": devices, "num_nodes": nodes}})
    check_processes(cfg, one_process=one_process)


def torchrun(processes: int) -> dict[str, str]:
    return TORCHRUN | {"WORLD_SIZE": str(processes)}


# What the script of a job sees, and each process that it starts without srun; tasks of srun.
SBATCH = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
SRUN = SBATCH | {"SLURM_STEP_NUM_TASKS": "4"}
ELSEWHERE = {"MASTER_ADDR": "one", "MASTER_PORT": "29500", "NODE_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "told"),
    [
        ({}, 2, 1, None),
        (torchrun(2), 2, 1, None),
        (torchrun(4), 2, 2, None),
        (SRUN, 2, 2, None),
        (SBATCH, 1, 1, None),
        (ELSEWHERE, 1, 2, None),
        (torchrun(2), 1, 1, "are 1 processes, but 2 started"),
        (SBATCH, 2, 1, "are 2 processes, but 1 started"),
        ({}, 2, 2, "are 4 processes, but 1 started: .* with torchrun or srun"),
    ],
)
def test_processes_that_a_launcher_started_otherwise_are_refused(
    launcher: pytest.MonkeyPatch,
    environment: dict[str, str],
    devices: int,
    nodes: int,
    told: str | None,
) -> None:
    for name, value in environment.items():
        launcher.setenv(name, value)
    with pytest.raises(PPFError, match=told) if told else nullcontext():
        check(devices, nodes)


@pytest.mark.parametrize("environment", [{}, SRUN])
def test_only_submitit_starts_several_processes_for_a_job_of_a_multirun(
    launcher: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    launcher.setattr("ppf.cli.launch.is_multirun", lambda: True)
    for name, value in environment.items():
        launcher.setenv(name, value)
    with pytest.raises(PPFError, match="hydra/launcher=submitit_slurm"):
        check(4)
    if environment:
        launcher.setenv("SUBMITIT_EXECUTOR", "slurm")
        check(4)


@pytest.mark.parametrize(("tasks", "alone"), [(None, True), ("1", True), ("8", False)])
def test_a_task_of_several_is_not_alone(
    launcher: pytest.MonkeyPatch, tasks: str | None, alone: bool
) -> None:
    if tasks:
        launcher.setenv("SLURM_STEP_NUM_TASKS", tasks)
    assert is_alone() == alone
    launcher.setenv("SLURM_PTY_PORT", "1")  # a shell that srun has started
    assert is_alone()
