"""`recover.py` as a user types it: two processes train as one does, and wrong calls are told."""

import gc
import json
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning import Fabric

from ppf.cli import recover as recover_command
from ppf.cli.recover import _rows, main
from ppf.errors import PPFError
from ppf.export.loading import load_folder
from ppf.recovery.inputs import with_enough_memory
from ppf.recovery.results import Recovered, RecoveryScore
from ppf.recovery.settings import RecoverySettings
from ppf.stages import evaluate, prune
from ppf.stages.recover import recover
from tests.commands import on_two_ranks
from tests.records import examples
from tests.recoveries import quick
from tests.searched import write_agent, write_search


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_folder(folder, torch.float32, trust_remote_code=False)[0].state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "blockwise"])
def test_two_processes_train_as_one_does(cache: str, tmp_path: Path, tune: str) -> None:
    write_search(tmp_path, cache)
    policy = json.loads((tmp_path / "policy.json").read_text())
    policy["kept"]["1.mlp"] = 0  # the norm of an emptied block has no gradient
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    given = [
        *quick(tmp_path, cache),
        f"policy={tmp_path}/policy.json",
        "recovery.tokens=512",
        "logger=csv",
        f"tune={tune}",
    ]
    two = [f"out={tmp_path}/two", f"paths.outputs={tmp_path}/outputs"]
    said = "".join(on_two_ranks("recover", [*given, *two], tmp_path))
    assert said.count("Written to") == 1 and "of the lost nats recovered" in said
    alone = [f"paths.run={tmp_path}/run", f"paths.artefacts={tmp_path}/artefacts"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("recover", [*given, *alone, f"out={tmp_path}/one"])
    recover(cfg, Fabric(accelerator="cpu", devices=1))
    shared, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    start = weights(next((tmp_path / "artefacts" / "pruned").glob("[!.]*")))
    for name, weight in one.items():
        torch.testing.assert_close(shared[name], weight, atol=1e-4, rtol=1e-3)
    changed = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(start[changed], shared[changed])


_CHECKPOINTED = "recovery.gradient_checkpointing=true"
_TRUE = "trainer.precision=bf16-true"


def test_blockwise_refuses_gradient_checkpointing(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(examples.policy()))
    with initialize_config_module("ppf.conf", version_base="1.3"):
        given = [f"policy={file}", f"paths.run={tmp_path}/run", "tune=blockwise", _CHECKPOINTED]
        cfg = compose("recover", given)
    assert main.check_relations is not None
    with pytest.raises(PPFError, match="tune=blockwise has no gradient checkpointing"):
        main.check_relations(cfg, [])


def test_adapters_are_not_trained_in_float16(tmp_path: Path) -> None:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        given = [f"search={tmp_path}", f"paths.run={tmp_path}/run", "trainer.precision=16-mixed"]
        cfg = compose("recover", given)
    assert main.check_relations is not None
    with pytest.raises(PPFError, match="search= cannot compute in float16"):
        main.check_relations(cfg, [])


def test_ratios_that_the_search_has_not_reached_are_refused(cache: str, tmp_path: Path) -> None:
    highest = float(write_agent(tmp_path, write_search(tmp_path, cache)[1]).knots[-1])
    with initialize_config_module("ppf.conf", version_base="1.3"):
        given = [f"search={tmp_path}", f"paths.run={tmp_path}/run", f"out={tmp_path}/out"]
        cfg = compose("recover", [*given, f"ratios=[0.1,{highest + 0.01}]"])
        reached = compose("recover", [*given, f"ratios=[0.1,{highest}]"])
    assert main.check_relations is not None
    main.check_relations(reached, [])
    with pytest.raises(PPFError, match=r"ratios=.* are too high: .* ends at .* Give ratios="):
        main.check_relations(cfg, [])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.precision=16-mixed", "16-mixed needs a GPU"),
        ("trainer.precision=transformer-engine", "transformer-engine is not supported: give bf16"),
        (
            "+trainer.gradient_clip_algorithm=max",
            "algorithm=max is not supported: give norm or val",
        ),
        ("+trainer.max_steps=3", "trainer.max_steps cannot be set here"),
        ("out=${policy}/..", "is the folder that is read"),
        ("elastic.rank=8", "recover with policy= does not read elastic.rank"),
    ],
)
def test_what_a_training_cannot_use(override: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(examples.policy()))
    with initialize_config_module("ppf.conf", version_base="1.3"):
        given = [f"policy={file}", f"paths.run={tmp_path}/run", "fabric=cpu"]
        cfg = compose("recover", [*given, override])
    assert main.check_relations is not None
    with pytest.raises(PPFError, match=sentence):
        main.check_relations(cfg, [override])


@pytest.mark.parametrize("losses", [True, False])
def test_losses_that_no_tuner_reads_are_refused(losses: bool) -> None:
    tune = "tune=[blockwise,lora]" if losses else "tune=blockwise"
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("recover", ["policy=a", "paths.run=x", tune])
    told = pytest.raises(PPFError, match="recover with tune=blockwise does not read loss")
    with nullcontext() if losses else told:
        recover_command.check_read(cfg, ["loss=ce"])


@pytest.mark.parametrize("given", [[], ["policy=a", "path=b"], ["search=a", "path=b"]])
def test_one_thing_is_recovered(given: list[str], tmp_path: Path) -> None:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("recover", [*given, f"paths.run={tmp_path}"])
    assert main.check_relations is not None
    with pytest.raises(PPFError, match="give one of policy=FILE"):
        main.check_relations(cfg, [])


def test_what_is_read_is_not_overwritten_and_recovered_weights_are_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    scores = dict.fromkeys(("dense", "pruned", "recovered"), {"nll": 3.0, "perplexity": 20.1})
    made = {"tune": ["full"], "loss": ["kl"], "tokens": 1024, "minutes": 0.5, "text": "faq"}
    how = {"windows": 4, "window": 512, "precision": "32-true", "seed": 0, "won_back": None}
    file.write_text(json.dumps(examples.policy() | {"recovered": made | how | scores}))
    (tmp_path / "config.json").write_text("{}")
    checks = [
        ([f"path={tmp_path}", f"out={tmp_path}/../{tmp_path.name}"], "that is read"),
        (["search=a", _CHECKPOINTED], "search= has no gradient checkpointing"),
        (["search=a", "dtype=bfloat16"], "adapters are written in float32"),
        ([f"path={tmp_path}", _TRUE], "bf16-true would round rotary frequencies"),
        ([f"path={tmp_path}"], "already a recovered model: give the folder"),
        ([f"policy={file}"], "already a recovered model: give the folder"),
    ]
    assert main.check_relations is not None
    for given, sentence in checks:
        with initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose("recover", [*given, f"paths.run={tmp_path}/run"])
        with pytest.raises(PPFError, match=sentence):
            main.check_relations(cfg, [])
    for stage, name in ((prune, "prune"), (evaluate, "evaluate")):
        with initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose(name, [f"policy={file}", f"paths.run={tmp_path}/run"])
        with pytest.raises(PPFError, match=f"a recovered model, .* give path={tmp_path}"):
            stage.check(cfg)


def test_an_attempt_that_ran_out_of_memory_is_freed_before_the_next() -> None:
    class Held: ...

    held: list[weakref.ref[Held]] = []

    def work(settings: RecoverySettings) -> bool:
        if not held:
            trainer: Any = Held()
            trainer.itself = trainer  # as Lightning's Trainer and its module
            held.append(weakref.ref(trainer))
            raise MemoryError
        return held[0]() is None

    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("recover", ["path=x", "paths.run=."])
    gc.disable()  # the collector would also free it, but later
    try:
        assert with_enough_memory(cfg, Fabric(accelerator="cpu", devices=1), work)
    finally:
        gc.enable()


def test_a_smaller_micro_batch_still_divides_the_batch_among_the_processes() -> None:
    settings = RecoverySettings(1, 10, 5, 0.0, 0.0, 1, 1, 0.0, False)
    assert [settings.halved(processes).micro_batch for processes in (1, 2)] == [2, 1]


def test_rows_of_a_sweep_have_the_ratio_that_was_asked_and_the_test_part(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(examples.policy()))
    with initialize_config_module("ppf.conf", version_base="1.3"):
        given = [f"policy={file}", f"paths.run={tmp_path}/run", "tune=[blockwise,lora]"]
        cfg = compose("recover", given)
    validated, tested = RecoveryScore(0.31, 3.0, 4.0, 3.5), RecoveryScore(0.31, 3.1, 4.2, 3.7)
    for test, part, nlls in (([], "validation", (4.0, 3.5)), ([tested], "test", (4.2, 3.7))):
        (row,) = _rows(cfg, Recovered([validated], test, 1024, 2.0, []))
        assert (row["ratio"], row["method"], row["tune"]) == (0.3, "uniform", "blockwise+lora")
        assert (row["part"], row["nll_pruned"], row["nll_recovered"]) == (part, *nlls)
