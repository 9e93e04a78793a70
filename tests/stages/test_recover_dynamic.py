"""Recovery of all ratios at once: the adapters, the model that uses them, resumption."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from lightning import Fabric
from omegaconf import DictConfig
from safetensors.torch import load_file

from ppf.cli.checks import check
from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.evaluation.perplexity import mean_nll
from ppf.export.loading import load_folder
from ppf.policy_file import read_policy
from ppf.pruning.elastic import ADAPTERS
from ppf.recovery.elastic import ElasticModule
from ppf.runtime import DynamicModel
from ppf.stages import prune, recover
from tests.composing import command_config
from tests.recoveries import KilledError, kill, recovery_config
from tests.searched import write_agent, write_search

Whole = tuple[DictConfig, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def searched(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dynamic search; artefacts and text.txt lie in it too."""
    folder = tmp_path_factory.mktemp("searched")
    _, context = write_search(folder, cache)
    write_agent(folder, context)
    return folder


@pytest.fixture
def config(searched: Path, cache: str, tmp_path: Path) -> Any:
    return partial(recovery_config, searched, cache, tmp_path, *given(searched))


@pytest.fixture(scope="module")
def whole(searched: Path, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The config of an unbroken recovery, and its losses."""
    cfg = recovery_config(searched, cache, tmp_path_factory.mktemp("whole"), *given(searched))
    return cfg, run(cfg)


def given(searched: Path) -> list[str]:
    own = ["ratios=[0.2,0.5]", "elastic.relative_lr=5e-2", "recovery.tokens=768"]
    paths = f"paths.artefacts={searched}/artefacts"
    return [f"search={searched}", *own, "recovery.validate_every=2", paths]


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """The losses at each ratio."""
    recover.main(cfg, Fabric(accelerator="cpu", devices=1))
    found: dict[str, Any] = json.loads(Path(cfg.paths.run, "summary.json").read_text())
    return found["results"]


def resident(folder: str | Path, cfg: DictConfig) -> DynamicModel:
    paths = (f"paths.artefacts={cfg.paths.artefacts}", f"paths.cache={cfg.paths.cache}")
    return DynamicModel.from_search(folder, *paths)


def test_16_bit_training_wins_nats_back(config: Any) -> None:
    scores = run(config("trainer.precision=bf16-mixed"))
    assert all(score["recovered"] < score["pruned"] - 1e-3 for score in scores), scores


def test_one_set_of_adapters_serves_every_ratio_and_leaves_the_dense_model(
    whole: Whole, searched: Path
) -> None:
    cfg, scores = whole
    assert [score["ratio"] for score in scores] == [0.2, 0.5]
    assert scores[1]["recovered"] < scores[1]["pruned"]
    before, after = resident(searched, cfg), resident(cfg.out, cfg)
    ids = torch.arange(64)[None]
    dense = before.lm.model(ids).logits
    assert torch.equal(after.lm.model(ids).logits, dense)
    for ratio in (0.15, 0.37, 0.5):
        after.set_ratio(ratio)
        before.set_ratio(ratio)
        assert after.pruner.kept == before.pruner.kept
        assert not torch.equal(after.lm.model(ids).logits, before.lm.model(ids).logits)
    after.set_ratio(0.0)
    assert torch.equal(after.lm.model(ids).logits, dense)


def test_prune_merges_the_adapters_at_a_ratio(whole: Whole, tmp_path: Path) -> None:
    cfg, _ = whole
    paths = [f"paths.{name}={cfg.paths[name]}" for name in ("artefacts", "cache", "run")]
    given = [f"search={cfg.out}/agent.json", "ratio=0.37", f"out={tmp_path}/at", *paths]
    pruning = command_config("prune", given)
    check(pruning)
    prune.main(pruning, Fabric(accelerator="cpu", devices=1))
    out, record = tmp_path / "at", read_policy(tmp_path / "at" / "policy.json", ())
    live, ids = resident(cfg.out, cfg), torch.arange(64)[None]
    live.set_ratio(0.37)
    model = load_folder(out, torch.float32)[0].eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            model(ids).logits, live.lm.model(ids).logits, atol=1e-4, rtol=1e-3
        )
    scores = record["exported"]["measured"]
    assert record["exported"]["compensation"] == "adapters"
    assert scores["adapters"]["nll"] != scores["one_shot"]["nll"] == record["measured"]["nll"]
    assert record["exported"]["adapters"]["tokens"] == 768

    pruning.export, pruning.out = read_option("export", "gguf"), f"{tmp_path}/gguf"
    prune.main(pruning, Fabric(accelerator="cpu", devices=1))
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    tensors = {t.name: torch.tensor(t.data) for t in GGUFReader(file).tensors}
    merged = model.state_dict()["model.layers.1.mlp.down_proj.weight"].half()
    assert torch.equal(tensors["blk.1.ffn_down.weight"], merged)


def test_without_adapters_prune_re_estimates_the_searchs_compensation(
    searched: Path, cache: str, tmp_path: Path
) -> None:
    paths = [f"paths.artefacts={searched}/artefacts", f"paths.cache={cache}"]
    given = [f"search={searched}", "ratio=0.37", f"paths.run={tmp_path}"]
    pruning = command_config("prune", [*given, f"out={tmp_path}/at", *paths])
    prune.main(pruning, Fabric(accelerator="cpu", devices=1))
    record = read_policy(tmp_path / "at" / "policy.json", ())
    assert record["config"]["compensation"]["_target_"].endswith("LeastSquares")
    _, context = write_search(tmp_path, cache, f"paths.artefacts={searched}/artefacts")
    measured, choice = (record["exported"][key] for key in ("measured", "choice"))
    with context.model.pruner.at(context.model.space.policy(record["kept"])):
        nll = context.labelling.present_nll()
    assert measured["one_shot"]["nll"] == pytest.approx(nll, rel=1e-5)
    better = min("one_shot", "sequential", key=lambda name: choice[name]["nll"])
    assert record["exported"]["compensation"] == better
    exported, _ = load_folder(tmp_path / "at", torch.float32)
    found = mean_nll(exported.eval(), context.labelling.windows, batch=2)
    assert found == pytest.approx(measured[better]["nll"], rel=1e-4)


def test_ratios_that_the_search_has_not_reached_are_refused(config: Any) -> None:
    recover.check(config("ratios=[0.1,0.55]"))
    with pytest.raises(PPFError, match="not trained for ratio=0.56"):
        recover.check(config("ratios=[0.1,0.56]"))


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_adapters_of_an_unbroken_one(
    config: Any, whole: Whole, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = load_file(Path(whole[0].out) / ADAPTERS)
    taken = kill(monkeypatch, ElasticModule, 7)
    cfg = config(f"paths.artefacts={tmp_path}/broken")
    with pytest.raises(KilledError):
        run(cfg)
    run(cfg)
    assert len(taken) == 7 + 12 - 4
    resumed = load_file(Path(cfg.out) / ADAPTERS)
    assert all(torch.equal(expected[name], found) for name, found in resumed.items())
