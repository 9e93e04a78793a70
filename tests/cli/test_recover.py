"""`recover.py` as a user types it: two processes train as one does, and wrong calls are told."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning import Fabric

from ppf.cli.recover import main
from ppf.errors import PPFError
from ppf.export.loading import load_folder
from ppf.stages.recover import recover
from tests.cli.conftest import Run
from tests.recoveries import quick
from tests.searched import write_search


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_folder(folder, torch.float32, trust_remote_code=False)[0].state_dict()


@pytest.mark.slow
def test_two_processes_train_as_one_does(run: Run, cache: str, tmp_path: Path) -> None:
    write_search(tmp_path, cache)
    given = [
        *quick(tmp_path, cache),
        f"policy={tmp_path}/policy.json",
        "recovery.tokens=512",
        "logger=csv",
    ]
    two = ("fabric.devices=2", f"out={tmp_path}/two")
    said = run("recover", *given, *two, process=True).stdout
    assert said.count("Written to") == 1 and "of the lost nats recovered" in said
    alone = [f"paths.run={tmp_path}/run", f"paths.artefacts={tmp_path}/artefacts"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("recover", [*given, *alone, f"out={tmp_path}/one"])
    recover(cfg, Fabric(accelerator="cpu", devices=1))
    shared, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    start = weights(next((tmp_path / "artefacts" / "pruned").glob("[!.]*")))
    for name, weight in one.items():
        torch.testing.assert_close(shared[name], weight, atol=1e-4, rtol=1e-3)
    assert not torch.equal(start["model.norm.weight"], shared["model.norm.weight"])


@pytest.mark.parametrize("given", [[], ["policy=a", "path=b"], ["search=a", "path=b"]])
def test_one_thing_is_recovered(given: list[str], tmp_path: Path) -> None:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("recover", [*given, f"paths.run={tmp_path}"])
    assert main.check_relations is not None
    with pytest.raises(PPFError, match="give one of policy=FILE"):
        main.check_relations(cfg)
