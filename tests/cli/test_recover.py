"""`recover.py` as a user types it: two processes train as one does."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Fabric

from ppf.stages import recover
from tests.commands import on_two_ranks
from tests.composing import command_config
from tests.recoveries import quick, weights
from tests.searched import write_search


@pytest.mark.slow
def test_two_processes_train_as_one_does(cache: str, tmp_path: Path) -> None:
    write_search(tmp_path, cache)
    policy = json.loads((tmp_path / "policy.json").read_text())
    policy["kept"]["1.mlp"] = 0  # the norm of an emptied block has no gradient
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    given = [
        *quick(tmp_path, cache),
        f"policy={tmp_path}/policy.json",
        "recovery.tokens=512",
        "logger=csv",
    ]
    two = [f"out={tmp_path}/two", f"paths.outputs={tmp_path}/outputs"]
    said = "".join(on_two_ranks("recover", [*given, *two], tmp_path))
    assert said.count("Written to") == 1 and "share of lost nats recovered" in said
    alone = [f"paths.run={tmp_path}/run", f"paths.artefacts={tmp_path}/artefacts"]
    cfg = command_config("recover", [*given, *alone, f"out={tmp_path}/one"])
    recover.main(cfg, Fabric(accelerator="cpu", devices=1))
    shared, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    start = weights(next((tmp_path / "artefacts" / "pruned").glob("[!.]*")))
    for name, weight in one.items():
        torch.testing.assert_close(shared[name], weight, atol=1e-4, rtol=1e-3)
    changed = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(start[changed], shared[changed])
