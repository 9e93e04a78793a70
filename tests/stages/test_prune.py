"""Which of the two compensations `prune` exports, and what it says of the weights."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM

from ppf.context import PruningContext, prepare
from ppf.errors import PPFError
from ppf.evaluation.perplexity import Piece, pieces_nll
from ppf.export.huggingface import HuggingFace
from ppf.labels.labelling import Labelling
from ppf.policy_file import by_site, policy_record, read_policy
from ppf.pruning.sequential import refit_sequentially
from ppf.space import uniform
from ppf.stages.evaluate import Procedure, evaluate_folders, evaluate_policy
from ppf.stages.prune import CompensationChoice, keep_better, prune
from ppf.text.windows import evenly
from tests.articles import write_articles
from tests.records import examples

SMALL = ("text.windows.calibration=2", "text.windows.labelling=3", "text.windows.test=2")


@dataclass(frozen=True)
class Setting:
    """Configures commands on a tiny model and a short text."""

    folder: Path
    cache: str

    def config(self, command: str, *overrides: str) -> DictConfig:
        paths = [f"paths.artefacts={self.folder}/artefacts", f"paths.cache={self.cache}"]
        with initialize_config_module("ppf.conf", version_base="1.3"):
            return compose(command, [*overrides, f"paths.run={self.folder}", *paths])


@pytest.fixture(scope="module")
def setting(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("prune"), cache)


@pytest.fixture(scope="module")
def prepared(setting: Setting) -> PruningContext:
    text = write_articles(setting.folder)
    given = ("model=tiny", f"text.path={text}", "text.window=64", *SMALL)
    return prepare(setting.config("search", *given), one_process())


@pytest.fixture
def context(prepared: PruningContext) -> PruningContext:
    """At the uniform policy of 0.5."""
    prepared.model.pruner.apply(uniform(prepared.model.space, torch.tensor([0.5]))[0].tolist())
    return prepared


def one_process() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def record(context: PruningContext) -> dict[str, Any]:
    kept = context.model.pruner.kept
    numbers = examples.numbers(by_site(context.model.space, kept))
    numbers["ratio"]["achieved"] = float(context.model.space.ratio(torch.tensor(kept)))
    return policy_record(context, kept, numbers, predictor="0")


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((5.0, 4.0), "sequential"),
        ((5.0, 6.0), "one_shot"),
        ((5.0, 5.0), "one_shot"),
        ((5.0, math.nan), "one_shot"),
        ((5.0, math.inf), "one_shot"),
        ((math.nan, 6.0), "sequential"),
        ((math.inf, math.nan), "one_shot"),
    ],
)
def test_the_weights_of_the_lower_perplexity_stay(
    context: PruningContext,
    scores: tuple[float, float],
    kept: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    ids, told = context.text.tokens("test", context.model.lm.tokenizer), iter(scores)
    before = context.model.lm.model(ids).logits
    model, text = context.model, context.calibration
    refit_sequentially(model.pruner, text.windows, text.first, model.compensation)
    after = context.model.lm.model(ids).logits
    assert not torch.equal(before, after)
    context.model.pruner.apply(context.model.pruner.kept)

    read = []

    def present_nll(_: Labelling, windows: torch.Tensor) -> float:
        read.append(windows)
        return next(told)

    monkeypatch.setattr(Labelling, "present_nll", present_nll)
    assert keep_better(context.labelling, context.calibration, 2).kept == kept
    assert torch.equal(
        context.model.lm.model(ids).logits, after if kept == "sequential" else before
    )
    deciding, said = evenly(context.labelling.others, 16), capsys.readouterr().out
    assert len(read) == 2 and all(torch.equal(windows, deciding) for windows in read)
    assert "measured on 16 windows of the selection part" in said
    assert ("Kept the re-estimated weights" in said) == (kept == "sequential")


def test_the_labelling_part_decides_if_labels_read_all_windows(context: PruningContext) -> None:
    labelling = replace(context.labelling, others=context.labelling.others[:0])
    one_shot = labelling.present_nll()
    choice = keep_better(labelling, context.calibration, 2)
    assert (choice.part, choice.windows, choice.one_shot) == ("labelling", 3, one_shot)
    assert labelling.present_nll() == min(one_shot, choice.sequential)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_record_and_the_card_tell_what_the_exported_weights_score(
    setting: Setting, context: PruningContext, dtype: str, tmp_path: Path
) -> None:
    cfg = setting.config("prune", "policy=null", f"out={tmp_path}", f"dtype={dtype}")
    out, _ = prune(cfg, one_process(), record(context))

    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert str(model.dtype) == f"torch.{dtype}"
    nll = pieces_nll(model, [context.labelling.piece], batch=2)
    exported = json.loads((out / "policy.json").read_text())["exported"]
    scores = {name: found["nll"] for name, found in exported["measured"].items()}
    choice = exported["choice"]
    assert choice["part"] == "selection" and choice["windows"] == 16
    losses = {name: choice[name]["nll"] for name in ("one_shot", "sequential")}
    piece = Piece(evenly(context.labelling.others, 16), exported["context"])
    decided = pieces_nll(model, [piece], batch=2)
    assert losses[exported["compensation"]] == min(losses.values())
    assert min(losses.values()) == pytest.approx(decided, abs=2e-3)
    assert scores.keys() == {"one_shot", exported["compensation"]}
    assert scores[exported["compensation"]] == pytest.approx(nll, abs=2e-3)
    card = (out / "README.md").read_text()
    assert f"Measured in {dtype} on 3 windows of 64 tokens of the labelling part" in card
    kept = {"one_shot": "one-shot", "sequential": "re-estimated front to back"}
    name = kept[exported["compensation"]]
    assert f"In this folder: {name}." in card
    shown = {name: f"{choice[name]['perplexity']:.4g}" for name in losses}
    assert "lower on 16 other windows of the same documents." in card
    told = f"There it was {shown['sequential']}, and {shown['one_shot']} with one-shot compensation"
    assert told in card
    dense, even, *rest = (
        line for line in card.splitlines() if line.startswith("| ") and "%" in line
    )
    assert dense.startswith("| dense | 0.0% |") and even.startswith("| uniform, one-shot")
    (row,) = (line for line in rest if f"**{name}, in this folder**" in line)
    assert f" | {scores[exported['compensation']]:.4g} | " in row
    assert f"{exported['dense']['perplexity']:.4g} |" in dense
    assert "0.mlp" not in card, "sites are listed in policy.json"


def test_speed_is_measured_for_the_card_on_request(
    setting: Setting, context: PruningContext, tmp_path: Path
) -> None:
    speed = "speed={batches:[1],prompt:8,new_tokens:2,repeats:1}"
    given = ("policy=null", f"out={tmp_path}", "sequential=false", "latency=true", speed)
    out, _ = prune(setting.config("prune", *given), one_process(), record(context))
    found = read_policy(out / "policy.json", ())["exported"]["speed"]
    card = (out / "README.md").read_text()
    assert "prefill, tokens/s, batch 1" in card
    for name in ("dense", "pruned"):
        assert f"| {found[name][0]['prefill']:,.1f} |" in card


def test_without_re_estimation_the_card_tells_the_one_shot_score(
    setting: Setting, context: PruningContext, tmp_path: Path
) -> None:
    cfg = setting.config("prune", "policy=null", f"out={tmp_path}", "sequential=false")
    out, _ = prune(cfg, one_process(), record(context))
    exported = json.loads((out / "policy.json").read_text())["exported"]
    nll = pieces_nll(context.model.lm.model, [context.labelling.piece], batch=2)
    assert exported["compensation"] == "one_shot"
    assert exported["measured"]["one_shot"]["nll"] == pytest.approx(nll, abs=1e-4)


def test_one_shot_weights_are_exported_if_the_format_cannot_hold_the_others(
    setting: Setting, context: PruningContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, PPFError("no biases."), None])

    def check(_: HuggingFace, pruner: object) -> None:
        if error := next(answers):
            raise error

    monkeypatch.setattr(HuggingFace, "check", check)
    monkeypatch.setattr(CompensationChoice, "kept", "sequential")
    cfg = setting.config("prune", "policy=null", f"out={tmp_path}")
    out, found = prune(cfg, one_process(), record(context))
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    nll = pieces_nll(model, [context.labelling.piece], batch=2)
    assert found["exported"]["compensation"] == "one_shot"
    assert {k: v["nll"] for k, v in found["exported"]["measured"].items()} == {
        "one_shot": pytest.approx(nll, abs=2e-3)
    }


def test_evaluate_measures_the_weights_that_prune_exports(
    setting: Setting, context: PruningContext, tmp_path: Path
) -> None:
    cfg = setting.config("prune", "policy=null", f"out={tmp_path}")
    out, _ = prune(cfg, one_process(), record(context))
    cfg = setting.config("evaluate", "dtype=float32", "baselines=false")
    procedure = Procedure.of(cfg)
    live = evaluate_policy(cfg, one_process(), procedure, record(context))
    folder = evaluate_folders(cfg, one_process(), procedure, [str(out)])
    assert live.results[0].nll == pytest.approx(folder.results[0].nll, abs=1e-4)
