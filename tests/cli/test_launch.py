"""Processes that would not work together are refused before the work starts."""

import os
from collections.abc import Iterator
from functools import cache
from unittest import mock

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from ppf.cli.launch import check_launch
from ppf.errors import PPFError
from ppf.processes import is_alone, kind_of_device

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0"}
CLI = {"LT_CLI_USED": "1"}
OF_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "MASTER_", "LT_")


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    before = HydraConfig.instance().cfg
    with mock.patch.dict(os.environ):  # the checks set variables too
        for name in [name for name in os.environ if name.startswith(OF_LAUNCHERS)]:
            del os.environ[name]
        yield monkeypatch
    HydraConfig.instance().cfg = before


@cache
def composed() -> DictConfig:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", return_hydra_config=True)


def check(*overrides: str, one_process: bool = False) -> None:
    cfg = composed().copy()
    cfg.merge_with_dotlist(list(overrides))
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"], cfg["paths"]
    check_launch(cfg, one_process=one_process)


def torchrun(processes: int, nodes: int = 1) -> dict[str, str]:
    each = {"LOCAL_WORLD_SIZE": str(processes // nodes)}
    return TORCHRUN | {"WORLD_SIZE": str(processes)} | each


def fabric_run(processes: int, **options: str) -> dict[str, str]:
    given = {"DEVICES": str(processes), "NUM_NODES": "1"} | options
    return torchrun(processes) | {f"LT_{key}": value for key, value in given.items()} | CLI


def sbatch(tasks: int, nodes: int = 1, each: int | None = None) -> dict[str, str]:
    """What the script of a job sees, and each process that it starts without srun."""
    told = {"SLURM_NTASKS": str(tasks), "SLURM_NNODES": str(nodes), "SLURM_PROCID": "0"}
    return told | ({"SLURM_NTASKS_PER_NODE": str(each)} if each else {})


def slurm(tasks: int, nodes: int = 1, each: int | None = None) -> dict[str, str]:
    """What the tasks of srun see."""
    return sbatch(tasks, nodes, each) | {"SLURM_STEP_NUM_TASKS": str(tasks)}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [
        ({}, 2, 1),
        (torchrun(1), 1, 1),
        (torchrun(2), 2, 1),
        (torchrun(4, nodes=2), 2, 2),
        (slurm(1, nodes=2), 1, 1),
        (slurm(2), 2, 1),
        (slurm(4, nodes=2, each=2), 2, 2),
        (sbatch(1), 1, 1),
        (sbatch(4, nodes=2, each=2), 1, 1),
        (fabric_run(2), 2, 1),
        (fabric_run(2, ACCELERATOR="cpu", STRATEGY="auto", PRECISION="32-true"), 2, 1),
        ({"MASTER_ADDR": "one", "MASTER_PORT": "29500", "NODE_RANK": "1"}, 1, 2),
    ],
)
def test_processes_that_fit_are_taken(
    launcher: pytest.MonkeyPatch, environment: dict[str, str], devices: int, nodes: int
) -> None:
    for name, value in environment.items():
        launcher.setenv(name, value)
    check("fabric.accelerator=cpu", f"fabric.devices={devices}", f"fabric.num_nodes={nodes}")


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "sentence"),
    [
        (torchrun(2), 1, 1, "torchrun started 2 processes .* give fabric.devices=2"),
        (torchrun(1), 2, 1, "1 process .* need 2: .* with torchrun --nproc_per_node=2"),
        (torchrun(4, nodes=2), 4, 1, "give fabric.devices=2 fabric.num_nodes=2"),
        (slurm(2), 1, 1, "Slurm started 2 processes .* give fabric.devices=2"),
        (slurm(1), 2, 1, "1 process .* need 2: .* with srun --ntasks-per-node=2"),
        (slurm(4, nodes=2, each=2), 4, 1, "give fabric.devices=2 fabric.num_nodes=2"),
        (slurm(2, each=1), 2, 1, "1 a node"),
        (sbatch(1), 2, 1, "1 process .* need 2: .* with srun --ntasks-per-node=2"),
        (sbatch(2, each=2), 2, 1, "1 process .* need 2: .* with srun --ntasks-per-node=2"),
        (sbatch(4, nodes=2), 2, 2, "1 process .* need 4: .* with srun --ntasks-per-node=2"),
        (slurm(1) | sbatch(4, each=4), 4, 1, "1 process .* need 4: .* with srun"),
        (fabric_run(2), 1, 1, "fabric run started 2 processes .* give fabric.devices=2"),
        (fabric_run(1), 2, 1, "1 process .* with fabric run --devices=2"),
        (fabric_run(2, STRATEGY="ddp"), 2, 1, r"give fabric\.strategy=ddp, or leave --strategy"),
        (fabric_run(2, ACCELERATOR="cuda"), 2, 1, r"give fabric\.accelerator=cuda, or leave"),
        (
            {},
            2,
            2,
            "on each machine with torchrun --nnodes=2 --nproc_per_node=2, or once with srun",
        ),
        ({"MASTER_ADDR": "one", "NODE_RANK": "1"}, 1, 2, "--nodes=2 --ntasks-per-node=1"),
        (slurm(2) | {"SLURM_JOB_NAME": "interactive"}, 2, 1, "export SLURM_JOB_NAME=ppf"),
    ],
)
def test_processes_that_a_launcher_started_otherwise_are_refused(
    launcher: pytest.MonkeyPatch,
    environment: dict[str, str],
    devices: int,
    nodes: int,
    sentence: str,
) -> None:
    for name, value in environment.items():
        launcher.setenv(name, value)
    with pytest.raises(PPFError, match=sentence):
        check("fabric.accelerator=cpu", f"fabric.devices={devices}", f"fabric.num_nodes={nodes}")


@pytest.mark.parametrize("environment", [{}, torchrun(2), slurm(2)])
def test_only_submitit_starts_several_processes_for_a_job_of_a_multirun(
    launcher: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    launcher.setattr("ppf.cli.launch.is_multirun", lambda: True)
    for name, value in environment.items():
        launcher.setenv(name, value)
    for executor in (None, "local", "slurm"):
        if executor:
            launcher.setenv("SUBMITIT_EXECUTOR", executor)
        if executor == "slurm" and environment:
            check("fabric.accelerator=cpu", "fabric.devices=2")
        else:  # also if submitit has started no task
            with pytest.raises(PPFError, match="a multirun cannot start 2 processes a job here"):
                check("fabric.accelerator=cpu", "fabric.devices=2")


@pytest.mark.parametrize(("tasks", "alone"), [(None, True), ("1", True), ("8", False)])
def test_a_task_of_several_is_not_alone(
    launcher: pytest.MonkeyPatch, tasks: str | None, alone: bool
) -> None:
    if tasks:
        launcher.setenv("SLURM_STEP_NUM_TASKS", tasks)
    assert is_alone() == alone
    launcher.setenv("SLURM_PTY_PORT", "1")  # a shell that srun has started
    assert is_alone()


def test_a_plan_needs_no_processes(launcher: pytest.MonkeyPatch) -> None:
    check("plan=true", "fabric.num_nodes=2")
    for name, value in sbatch(2, each=2).items():
        launcher.setenv(name, value)
    check("plan=true", "fabric.devices=2")


def test_the_script_of_a_job_may_use_one_process(launcher: pytest.MonkeyPatch) -> None:
    for name, value in sbatch(2).items():
        launcher.setenv(name, value)
    check(one_process=True)
    # Lightning's Trainer, which trains the predictor, refuses several tasks without this variable.
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "2"


@pytest.mark.usefixtures("launcher")
def test_python_code_may_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: False))
    monkeypatch.delattr(HydraConfig, "get")
    check("fabric.devices=2")


@pytest.mark.usefixtures("launcher")
def test_the_predictor_is_trained_on_one_device() -> None:
    check("trainer.devices=auto")
    with pytest.raises(PPFError, match=r"give trainer\.devices=1"):
        check("trainer.devices=2")


@pytest.mark.usefixtures("launcher")
def test_apples_devices_are_neither_chosen_nor_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    check()
    assert kind_of_device("auto") == "cpu"
    for group in ("fabric", "trainer"):
        with pytest.raises(PPFError, match=f"no float64: give {group}=cpu"):
            check(f"{group}.accelerator=mps")


@pytest.mark.usefixtures("launcher")
def test_a_command_may_use_one_process_only() -> None:
    check(one_process=True)
    with pytest.raises(PPFError, match=r"one process: give fabric\.devices=1"):
        check("fabric.devices=2", one_process=True)


@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("strategy", ["fsdp", "ddp_spawn", "none"])
def test_strategies_that_are_not_supported_are_refused(strategy: str) -> None:
    with pytest.raises(PPFError, match=rf"fabric\.strategy={strategy} is .* give auto or ddp"):
        check(f"fabric.strategy={strategy}")


@pytest.mark.usefixtures("launcher")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("group", ["fabric", "trainer"])
@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_missing_accelerator_is_named(group: str, kind: str) -> None:
    cannot = rf"{group}.accelerator={kind} {group}.devices=1 cannot be"
    with pytest.raises(PPFError, match=rf"{cannot} .* give other values, or {group}=cpu"):
        check(f"{group}.accelerator={kind}")
