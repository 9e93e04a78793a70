"""Processes that would not work together are refused before the work starts."""

from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from ppf.cli.launch import check_launch
from ppf.errors import PPFError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_NTASKS_PER_NODE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


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


def slurm(tasks: int, nodes: int = 1, each: int | None = None) -> dict[str, str]:
    told = {"SLURM_NTASKS": str(tasks), "SLURM_NNODES": str(nodes)}
    return told | ({"SLURM_NTASKS_PER_NODE": str(each)} if each else {})


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
    ],
)
def test_processes_that_fit_are_taken(
    launcher: pytest.MonkeyPatch, environment: dict[str, str], devices: int, nodes: int
) -> None:
    for name, value in environment.items():
        launcher.setenv(name, value)
    check(f"fabric.devices={devices}", f"fabric.num_nodes={nodes}")


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "sentence"),
    [
        (torchrun(2), 1, 1, "torchrun started 2 processes .* give fabric.devices=2"),
        (torchrun(1), 2, 1, "need 2: .* start the command with --nproc_per_node=2"),
        (torchrun(4, nodes=2), 4, 1, "give fabric.devices=2 fabric.num_nodes=2"),
        (slurm(2), 1, 1, "Slurm started 2 processes .* give fabric.devices=2"),
        (slurm(1), 2, 1, "need 2: .* start the command with --ntasks-per-node=2"),
        (slurm(4, nodes=2, each=2), 4, 1, "give fabric.devices=2 fabric.num_nodes=2"),
        (slurm(2, each=1), 2, 1, "1 a node"),
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
        check(f"fabric.devices={devices}", f"fabric.num_nodes={nodes}")


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
def test_a_command_may_use_one_process_only() -> None:
    check(one_process=True)
    with pytest.raises(PPFError, match=r"one process: give fabric\.devices=1"):
        check("fabric.devices=2", one_process=True)


@pytest.mark.usefixtures("launcher")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("group", ["fabric", "trainer"])
@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_missing_accelerator_is_named(group: str, kind: str) -> None:
    with pytest.raises(PPFError, match=rf"{group}.accelerator={kind} {group}.devices=1 cannot be"):
        check(f"{group}.accelerator={kind}")
