"""Which of the two compensations `prune` exports, and what it says of the weights."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM

from ppf.evaluation import parameters
from ppf.evaluation.perplexity import mean_nll
from ppf.labels.compensating import keep_better
from ppf.labels.context import PruningContext, prepare
from ppf.labels.labelling import Labelling
from ppf.policy_file import by_site, policy_record, read_policy
from ppf.pruning.sequential import refit_sequentially
from ppf.space import uniform
from ppf.stages import evaluate
from ppf.stages.prune import main
from ppf.text.windows import evenly
from tests.articles import write_articles
from tests.composing import command_config
from tests.records import examples

SMALL = ("text.windows.calibration=2", "text.windows.labelling=3", "text.windows.test=2")


@dataclass(frozen=True)
class Setting:
    """Configures commands on a tiny model and a short text."""

    folder: Path
    cache: str

    def config(self, command: str, *overrides: str) -> DictConfig:
        paths = [f"paths.artefacts={self.folder}/artefacts", f"paths.cache={self.cache}"]
        return command_config(command, [*overrides, f"paths.run={self.folder}", *paths])


@pytest.fixture(scope="module")
def setting(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("prune"), cache)


@pytest.fixture(scope="module")
def dense(setting: Setting) -> PruningContext:
    text = write_articles(setting.folder)
    given = ("model=tiny", f"text.path={text}", "text.window=64", *SMALL)
    return prepare(setting.config("search", *given), one_process())


@pytest.fixture
def context(dense: PruningContext) -> PruningContext:
    """At the uniform policy of 0.5."""
    dense.model.pruner.apply(uniform(dense.model.space, torch.tensor([0.5]))[0].tolist())
    return dense


def one_process() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def record(context: PruningContext) -> dict[str, Any]:
    kept = context.model.pruner.kept
    numbers = examples.numbers(by_site(context.model.space, kept))
    numbers["ratio"]["achieved"] = float(context.model.space.ratio(torch.tensor(kept)))
    return policy_record(context, kept, numbers, predictor="0")


def pruned(setting: Setting, context: PruningContext, out: Path, *overrides: str) -> dict[str, Any]:
    """Prunes to the context's policy, into the folder `out`; the policy.json written there."""
    file = setting.folder / "policy.json"
    file.write_text(json.dumps(record(context)))
    main(setting.config("prune", f"policy={file}", f"out={out}", *overrides), one_process())
    return read_policy(out / "policy.json", ())


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((5.0, 4.0), "sequential"),
        ((5.0, 5.0), "one_shot"),
        ((5.0, math.nan), "one_shot"),
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
    choice = keep_better(context.labelling, context.calibration, 2)
    assert choice and choice.kept == kept
    assert torch.equal(
        context.model.lm.model(ids).logits, after if kept == "sequential" else before
    )
    deciding, said = evenly(context.labelling.others, 16), capsys.readouterr().out
    assert len(read) == 2 and all(torch.equal(windows, deciding) for windows in read)
    assert "on 16 windows of the selection part" in said
    assert f"Kept: {kept.replace('_', '-')}." in said


def test_the_labelling_part_decides_if_labels_read_all_windows(context: PruningContext) -> None:
    labelling = replace(context.labelling, others=context.labelling.others[:0])
    one_shot = labelling.present_nll()
    choice = keep_better(labelling, context.calibration, 2)
    assert choice is not None
    assert (choice.part, choice.windows, choice.one_shot) == ("labelling", 3, one_shot)
    assert labelling.present_nll() == min(one_shot, choice.sequential)


def test_weights_are_refitted_once_for_all_number_formats(
    setting: Setting, context: PruningContext, tmp_path: Path
) -> None:
    folder = setting.folder / "artefacts" / "sequential"
    shutil.rmtree(folder, ignore_errors=True)
    pruned(setting, context, tmp_path / "a", "dtype=float32")
    (found,) = folder.iterdir()
    changed = found.stat().st_mtime_ns
    exported = pruned(setting, context, tmp_path / "b", "dtype=bfloat16")["exported"]
    assert [*folder.iterdir()] == [found] and found.stat().st_mtime_ns == changed
    assert exported["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_record_and_the_card_tell_what_the_exported_weights_score(
    setting: Setting, context: PruningContext, dtype: str, tmp_path: Path
) -> None:
    exported = pruned(setting, context, tmp_path, f"dtype={dtype}")["exported"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert str(model.dtype) == f"torch.{dtype}"
    nll = mean_nll(model, context.labelling.windows, batch=2)
    scores = {name: found["nll"] for name, found in exported["measured"].items()}
    choice = exported["choice"]
    assert choice["part"] == "selection" and choice["windows"] == 16
    losses = {name: choice[name]["nll"] for name in ("one_shot", "sequential")}
    decided = mean_nll(model, evenly(context.labelling.others, 16), batch=2)
    assert losses[exported["compensation"]] == min(losses.values())
    assert min(losses.values()) == pytest.approx(decided, abs=2e-3)
    assert scores.keys() == {"one_shot", exported["compensation"]}
    assert scores[exported["compensation"]] == pytest.approx(nll, abs=2e-3)
    card = (tmp_path / "README.md").read_text()
    kept = f"{exported['compensation'].replace('_', '-')} compensation"
    assert f"In this folder: {kept}. Measured in {dtype} on " in card
    for name, score in choice.items():
        if name in losses:
            assert f"| selection part, 16 windows | {score['perplexity']:.4g} |" in card


def test_a_layer_without_blocks_goes_and_evaluate_measures_the_exported_weights(
    setting: Setting, dense: PruningContext, tmp_path: Path
) -> None:
    model = dense.model
    half = uniform(model.space, torch.tensor([0.5]))[0].tolist()
    sites = zip(model.space.sites, half, strict=True)
    model.pruner.apply([0 if site.layer == 1 else units for site, units in sites])
    record = pruned(setting, dense, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == dense.model.lm.model.config.num_hidden_layers - 1
    left = parameters(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True))
    assert record["ratio"]["of_all_parameters"] == 1 - left / model.parameters
    told = f"{config['num_hidden_layers']} layers and {left:,} parameters"
    assert f"{told} instead of {model.parameters:,}." in (tmp_path / "README.md").read_text()
    given = (f"policy={setting.folder}/policy.json", f"path={tmp_path}")
    nlls = [
        evaluate.main(setting.config("evaluate", x, "dtype=float32", *more), one_process()).metric
        for x, more in zip(given, (["baselines=false"], []), strict=True)
    ]
    assert nlls[0] == pytest.approx(nlls[1], abs=1e-4)
