"""Recovery of the tiny model, from a policy or a folder to a Hugging Face folder."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from lightning import Fabric
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM

from ppf.cli.checks import check
from ppf.errors import PPFError
from ppf.evaluation.perplexity import mean_nll
from ppf.export.loading import load_folder
from ppf.policy_file import read_policy
from ppf.recovery.module import RecoveryModule
from ppf.stages import prune, recover
from ppf.stages.outcome import Outcome
from ppf.text.parts import build_text
from ppf.text.training import training_text
from tests.composing import command_config
from tests.export.conftest import own
from tests.records import examples
from tests.recoveries import KilledError, kill, recovery_config, weights
from tests.searched import write_search

BF16 = "trainer.precision=bf16-mixed"
LR = {"full": 1.5e-2, "lora": 5e-2, "norms_and_biases": 2e-2}


@pytest.fixture(scope="module")
def searched(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with policy.json, text.txt and artefacts; the uniform policy at 0.3.

    Bias compensation loses more than the default, so there is more to recover.
    """
    folder = tmp_path_factory.mktemp("searched")
    write_search(folder, cache, "compensation=bias")
    return folder


@pytest.fixture(scope="module")
def start(searched: Path, cache: str) -> Path:
    """The folder of the pruned model."""
    paths = [f"paths.{name}={searched}/{name}" for name in ("run", "artefacts")]
    given = [f"policy={searched}/policy.json", f"paths.cache={cache}", *paths]
    cfg = command_config("prune", [*given, f"out={searched}/pruned"])
    prune.main(cfg, Fabric(accelerator="cpu", devices=1))
    return Path(cfg.out)


@pytest.fixture
def config(searched: Path, start: Path, cache: str, tmp_path: Path) -> Any:
    own = (f"path={start}", "recovery.tokens=1024", "recovery.validate_every=4")
    artefacts = f"paths.artefacts={tmp_path}/artefacts"
    return partial(recovery_config, searched, cache, tmp_path, *own, artefacts)


def recovered(cfg: DictConfig) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of the command, and the losses that summary.json has for the only ratio."""
    outcome = recover.main(cfg, Fabric(accelerator="cpu", devices=1))
    (row,) = json.loads(Path(cfg.paths.run, "summary.json").read_text())["results"]
    assert outcome.metric == row["recovered"]
    return outcome, row


def run(cfg: DictConfig) -> dict[str, Any]:
    return recovered(cfg)[1]


@pytest.mark.parametrize(
    "tune", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in [*LR][1:])]
)
def test_each_tuner_wins_nats_back_and_exports_a_plain_folder(
    config: Any, start: Path, tune: str
) -> None:
    cfg = config(f"tune={tune}", f"tune.{tune}.relative_lr={LR[tune]}", "loss=[kl,ce]", BF16)
    assert run(cfg)["won_back"] > 0.02
    folder = Path(cfg.out)
    assert {f.name for f in folder.iterdir()} == {f.name for f in start.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.state_dict().keys() == weights(start).keys()
    ids = torch.arange(32)[None]
    assert torch.equal(model(ids).logits, own(folder)(ids).logits)


def test_recovered_weights_are_written_for_llama_cpp(config: Any, tmp_path: Path) -> None:
    cfg = config("tune=norms_and_biases", "recovery.tokens=256")
    run(cfg)
    expected = weights(cfg.out)
    given = (f"path={cfg.out}", f"paths.run={tmp_path}/run", f"out={tmp_path}/gguf")
    wanted = command_config("prune", [*given, "export=gguf"])
    check(wanted)
    prune.main(wanted, Fabric(accelerator="cpu", devices=1))
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    record = read_policy(tmp_path / "gguf" / "policy.json", ())
    reader = GGUFReader(file)
    tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
    for name, key in {
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "blk.2.attn_output.bias": "model.layers.2.self_attn.o_proj.bias",
    }.items():
        assert torch.equal(tensors[name], expected[key])
    assert json.loads(reader.fields["ppf.policy"].contents()) == record
    assert record["recovered"]["tune"] == ["norms_and_biases"]
    given = (f"policy={cfg.out}/policy.json", f"paths.run={tmp_path}/run")
    again = command_config("prune", [*given])
    with pytest.raises(PPFError, match=f"give path={cfg.out}"):
        prune.check(again)


def test_rotary_frequencies_are_not_rounded(config: Any, start: Path) -> None:
    cfg = config("trainer.precision=bf16-mixed", "recovery.tokens=32")
    model, tokenizer = load_folder(start, torch.bfloat16)
    text = build_text(training_text(cfg.text), cfg.paths.cache)
    expected = mean_nll(model.eval(), text.tokens("validation", tokenizer), batch=2)
    assert run(cfg)["pruned"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_a_policy_is_pruned_once_and_then_recovered(
    config: Any, searched: Path, start: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("path=null", f"policy={searched}/policy.json", f"paths.artefacts={searched}/artefacts")
    found = run(config(*given, "recovery.tokens=32"))
    assert found["pruned"] == run(config("recovery.tokens=32"))["pruned"]
    assert "Reusing" not in capsys.readouterr().out
    moved = read_policy(searched / "policy.json", [])
    (searched / "moved.txt").write_bytes((searched / "text.txt").read_bytes())
    moved["config"]["text"]["path"] = str(searched / "moved.txt")
    (searched / "moved.json").write_text(json.dumps(moved))
    (stored,) = (searched / "artefacts" / "pruned").glob("*/policy.json")
    gone = json.loads(stored.read_text())
    gone["config"]["text"]["path"] = str(searched / "gone.txt")
    stored.write_text(json.dumps(gone))  # as if the text had lain elsewhere when it was made
    again = config(*given, f"policy={searched}/moved.json", "recovery.tokens=32")
    (stored.parent / "chat_template.jinja").write_text("of an earlier tokenizer")
    assert run(again)["pruned"] == found["pruned"]
    assert "Reusing the pruned model" in capsys.readouterr().out
    assert not (Path(again.out) / "chat_template.jinja").exists()  # nor has the dense model one
    file = stored.with_name("model.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert run(config(*given, "recovery.tokens=32"))["pruned"] == found["pruned"]
    assert "Reusing" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_long_work")
def test_too_little_training_text_is_refused_before_the_model_is_pruned(
    config: Any, searched: Path
) -> None:
    given = ("path=null", f"policy={searched}/policy.json", "text.training.windows.validation=9999")
    with pytest.raises(PPFError, match="the validation part of text=.* has"):
        run(config(*given))


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_killed_run_resumes_with_the_weights_of_an_unbroken_one(
    config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tune: str
) -> None:
    given = (f"tune={tune}", "trainer.precision=bf16-mixed")
    whole = config(*given, f"paths.artefacts={tmp_path}/whole", f"out={tmp_path}/whole/model")
    run(whole)
    taken, cfg = kill(monkeypatch, RecoveryModule, 11), config(*given)
    with pytest.raises(KilledError):
        run(cfg)
    run(cfg)
    assert len(taken) == 11 + 2 * 8 - 2 * 4  # two micro-batches in each step
    expected = weights(whole.out)
    assert all(torch.equal(expected[name], weight) for name, weight in weights(cfg.out).items())


def test_a_folder_is_recovered_and_says_so(config: Any, tmp_path: Path) -> None:
    out = tmp_path / "again"
    cfg = config(f"out={out}", "dtype=bfloat16", "loss=[kl,ce]", "loss.ce.weight=0.5")
    outcome, found = recovered(cfg)
    record = json.loads((out / "policy.json").read_text())["recovered"]
    assert (record["tune"], record["loss"], record["tokens"]) == (["full"], ["kl", "ce"], 1024)
    assert record["recovered"]["nll"] == found["recovered"] < found["pruned"]
    card = (out / "README.md").read_text()
    assert "In this folder: recovered." in card
    assert f"| {record['recovered']['nll']:.4g} |" in card
    assert load_folder(out, torch.bfloat16)[0].dtype == torch.bfloat16
    (row,) = outcome.figures
    assert (row["ratio"], row["method"], row["mode"]) == (0.3, "uniform", "static")
    assert (row["tune"], row["loss"], row["part"]) == ("full", "kl+ce", "validation")
    assert (row["nll_pruned"], row["nll_recovered"]) == (found["pruned"], found["recovered"])


def test_the_test_part_is_measured_on_request(
    config: Any, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = shutil.copytree(start, tmp_path / "pruned") / "policy.json"
    record = json.loads(file.read_text()) | {"budget": {"name": "kv", "saved": 0.4}}
    file.write_text(json.dumps(record))
    given = (f"path={file.parent}", "text.windows.test=4", "recovery.tokens=256")
    outcome, _ = recovered(cfg := config("report_test=true", *given))
    assert "documents that are now in the test part" not in capsys.readouterr().out
    (score,) = json.loads((tmp_path / "summary.json").read_text())["test"]
    assert score["ratio"] == 0.4
    text = build_text(cfg.text, cfg.paths.cache)
    for folder, nll in ((start, score["pruned"]), (cfg.out, score["recovered"])):
        model, tokenizer = load_folder(Path(folder), torch.float32)
        found = mean_nll(model.eval(), text.tokens("test", tokenizer), batch=2)
        assert nll == pytest.approx(found, rel=1e-5)
    assert score["recovered"] != score["pruned"] != score["dense"]
    (row,) = outcome.figures
    assert (row["ratio"], row["part"]) == (0.3, "test")  # a sweep compares jobs by what they ask
    assert row["nll_recovered"] == score["recovered"]


def test_what_would_be_lost_or_falsified_is_refused(tmp_path: Path) -> None:
    scores = dict.fromkeys(("dense", "pruned", "recovered"), {"nll": 3.0, "perplexity": 20.1})
    made = {"tune": ["full"], "loss": ["kl"], "tokens": 1024, "minutes": 0.5, "text": "faq"}
    how = {"windows": 4, "window": 512, "precision": "32-true", "seed": 0, "won_back": None}
    folder, again, other = (tmp_path / name for name in ("pruned", "recovered", "of a user"))
    for place, more in ((folder, {}), (again, {"recovered": made | how | scores})):
        place.mkdir()
        (place / "policy.json").write_text(json.dumps(examples.policy() | more))
    other.mkdir()
    (other / "README.md").write_text("mine")
    for given, sentence in (
        ([], "give one of policy=FILE"),
        ([f"path={folder}", "search=x"], "give one of policy=FILE"),
        ([f"path={folder}", f"out={folder}/../pruned"], "that is read"),
        ([f"path={folder}", f"out='{other}'"], "would replace README.md"),
        ([f"path={again}"], "already a recovered model: give the folder"),
        ([f"policy={again}/policy.json"], f"a recovered model, .* give path={again}"),
    ):
        cfg = command_config("recover", [*given, f"paths.run={tmp_path}/run"])
        with pytest.raises(PPFError, match=sentence):
            recover.check(cfg)
