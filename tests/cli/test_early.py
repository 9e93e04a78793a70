"""What a command cannot do with a model or a text is told before the calibration text is read."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.cli.search import main as search
from ppf.conf import plain
from ppf.context import prepare as stage
from ppf.errors import PPFError
from ppf.llm.sources import byte_tokenizer
from ppf.pruning.signatures import recorded, signatures
from ppf.stages.evaluate import Procedure, evaluate_policy
from ppf.stages.prune import prune
from ppf.stages.prune_at import prune_at
from tests.articles import write_articles
from tests.checkpoints import CHECKPOINTS, random_model
from tests.records import examples
from tests.searched import QUICK


@pytest.fixture(autouse=True)
def _no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(*arguments: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(stage.Observed, "make", observe)


@pytest.fixture
def opt(tmp_path: Path) -> list[str]:
    """The overrides of a model of another family."""
    folder = tmp_path / "opt"
    random_model(CHECKPOINTS["opt-32-heads-tied"]).model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return [f"model.path={folder}", "space.channel_multiple=32"]


def config(command: str, folder: Path, cache: str, *overrides: str) -> DictConfig:
    paths = [f"paths.run={folder}", f"paths.artefacts={folder}", f"paths.cache={cache}"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose(command, [*paths, "fabric=cpu", "logger=none", *overrides])


def searching(folder: Path, cache: str, *overrides: str) -> DictConfig:
    text = (f"text.path={write_articles(folder)}", "text.windows.test=2")
    return config("search", folder, cache, "model=tiny", *QUICK, *text, *overrides)


def record(cfg: DictConfig) -> dict[str, Any]:
    """A policy.json of a search with this config."""
    found = signatures(cfg)
    own = {"signatures": vars(found) | {"predictor": "0"}, "config": plain(recorded(cfg))}
    return examples.policy() | own


def one_process() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["space=mlp", "budget=kv"], "no site of space=mlp has a cost under budget=kv"),
        (
            ["budget=bytes", "rules=bytes", "agent=evolution"],
            "the row length of 0.attention is not a multiple",
        ),
        (["report_test=true", "text.windows.test=100000"], "lower text.windows.test"),
        (
            ["budget=latency", "budget.cost.window=4096"],
            "the latency budget's cost.window=4096 exceeds the model's 1024 positions",
        ),
        (
            ["budget@pareto.y=latency", "pareto.y.cost.window=4096"],
            "the latency budget's cost.window=4096 exceeds the model's 1024 positions",
        ),
    ],
)
def test_a_search(overrides: list[str], sentence: str, cache: str, tmp_path: Path) -> None:
    with pytest.raises(PPFError, match=sentence):
        search.task(searching(tmp_path, cache, *overrides), one_process())


def test_a_search_that_starts_from_a_policy_of_another_space(cache: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(examples.policy()))
    cfg = searching(tmp_path, cache, f"search.start={file}", "space.channel_multiple=16")
    with pytest.raises(PPFError, match="the policy does not fit space=width"):
        search.task(cfg, one_process())


def test_a_search_for_bytes_in_another_family(opt: list[str], cache: str, tmp_path: Path) -> None:
    cfg = searching(tmp_path, cache, *opt, "space=mlp", "budget=bytes", "rules=bytes")
    with pytest.raises(PPFError, match="budget=bytes does not support opt"):
        search.task(cfg, one_process())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["window=64", "stride=128"], "give at least two tokens, window ≥ 2 and 1 ≤ stride"),
        (["window=2000"], "window=2000 exceeds the model's 1024 positions"),
        (["latency=true", "speed.prompt=100000"], "exceeds the model's 1024 positions"),
        (["text=wikipedia_sample", "text.windows.test=100000"], "lower text.windows.test"),
    ],
)
def test_an_evaluation(overrides: list[str], sentence: str, cache: str, tmp_path: Path) -> None:
    policy = record(searching(tmp_path, cache))
    cfg = config("evaluate", tmp_path, cache, "policy=p", *overrides)
    if cfg.get("text"):
        OmegaConf.update(cfg, "text.path", str(tmp_path / "text.txt"))
    with pytest.raises(PPFError, match=sentence):
        evaluate_policy(cfg, one_process(), Procedure.of(cfg), policy)


@pytest.mark.parametrize("export", ["gguf", "decilm"])
@pytest.mark.parametrize("source", ["policy", "search"])
def test_an_export_of_another_family(
    export: str,
    source: str,
    opt: list[str],
    cache: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = record(searching(tmp_path, cache, *opt))
    found["kept"] = dict.fromkeys(found["units"], 0) | {
        "0.attention": found["units"]["0.attention"]
    }
    given = [f"{source}={tmp_path}", f"export={export}", "ratio=0.3"]
    cfg = config("prune", tmp_path, cache, *given)
    with pytest.raises(PPFError, match=f"export={export} supports .*, not opt"):
        if source == "policy":
            prune(cfg, one_process(), found)
        else:
            space = SimpleNamespace(dense=torch.tensor([2]), sites=[SimpleNamespace(name="0.mlp")])
            agent = SimpleNamespace(record=found, space=space, policy=lambda ratio: [1])
            monkeypatch.setattr("ppf.stages.prune_at.load_agent", lambda *given: agent)
            prune_at(cfg, one_process())


@pytest.mark.parametrize("source", ["policy", "search"])
def test_a_format_that_cannot_hold_the_policy(
    source: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = record(searching(tmp_path, cache))
    found |= {"kept": {"0.attention": 1}, "units": {"0.attention": 2}}
    cfg = config("prune", tmp_path, cache, f"{source}=p", "export=decilm", "ratio=0.3")
    sites = [SimpleNamespace(name="0.attention")]
    space = SimpleNamespace(dense=torch.tensor([2]), sites=sites)
    agent = SimpleNamespace(record=found, space=space, policy=lambda ratio: [1])
    monkeypatch.setattr("ppf.stages.prune_at.load_agent", lambda *given: agent)
    with pytest.raises(PPFError, match=r"0\.attention keeps 1 of 2 KV groups"):
        prune(cfg, one_process(), found) if source == "policy" else prune_at(cfg, one_process())


@pytest.mark.parametrize("source", ["policy", "search"])
def test_the_memory_check_knows_of_the_re_estimation(
    source: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = record(searching(tmp_path, cache))
    cfg = config("prune", tmp_path, cache, f"{source}=p", "refit_windows=64", "ratio=0.3")
    sites = [SimpleNamespace(name=name) for name in found["kept"]]
    space = SimpleNamespace(dense=torch.tensor([2] * len(sites)), sites=sites)
    agent = SimpleNamespace(record=found, space=space, policy=lambda ratio: [1] * len(sites))
    monkeypatch.setattr("ppf.stages.prune_at.load_agent", lambda *given: agent)
    asked = list[DictConfig]()

    def refuse(of_model: DictConfig, *given: object) -> None:
        asked.append(of_model)
        raise PPFError("too little memory")

    monkeypatch.setattr(stage, "refuse_what_does_not_fit", refuse)
    with pytest.raises(PPFError, match="too little memory"):
        prune(cfg, one_process(), found) if source == "policy" else prune_at(cfg, one_process())
    assert asked[0].sequential and asked[0].refit_windows == 64


def test_an_export_with_prompts_that_are_too_long(cache: str, tmp_path: Path) -> None:
    found = record(searching(tmp_path, cache))
    cfg = config("prune", tmp_path, cache, "policy=p", "latency=true", "speed.prompt=100000")
    with pytest.raises(PPFError, match=r"speed.prompt \+ speed.new_tokens=.* exceeds the model's"):
        prune(cfg, one_process(), found)
