"""collect → train → search → prune → evaluate, by the commands that a user types."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from ppf.llm.sources import byte_tokenizer
from tests.checkpoints import CHECKPOINTS, random_model
from tests.cli.conftest import HASTY, Run, only

QUICK = (
    *("labels.count=24", "text.window=64", "space.channel_multiple=32"),
    "text.windows={calibration:8,labelling:2,test:4}",
)
SEARCH = ("agent=evolution", "agent.generations=16", "agent.children=64", "search.rounds=1")


@pytest.fixture
def llama2(tmp_path: Path) -> Path:
    """A random checkpoint of Llama-2's form: 32 heads, multi-head attention, untied embeddings."""
    folder = tmp_path / "llama2"
    random_model(CHECKPOINTS["llama-32-heads-untied"]).model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_whole_chain_on_a_model_of_llama2s_form(
    run: Run, text: str, llama2: Path, tmp_path: Path
) -> None:
    model = ("model=llama2_7b", f"model.path={llama2}", "model.dtype=float32", text, *QUICK)
    first = run("search", *model, *HASTY, *SEARCH).stdout
    assert "Labelling" in first and "Training the predictor" in first
    policy_file = only(tmp_path / "outputs", "policy.json")
    policy = json.loads(policy_file.read_text())
    assert policy["ratio"]["achieved"] >= 0.3
    both = [
        2 * x["measured"]["nll"] + 16 * x["selection"]["nll"] for x in (policy, policy["uniform"])
    ]
    assert both[0] <= both[1] + 1e-3
    assert policy["selection"]["part"] == "selection" and policy["selection"]["std_error"] > 0

    assert list((policy_file.parent / "wandb").glob("offline-run-*"))

    again = run("search", *model, *HASTY, "agent=uniform", "search.rounds=1", "logger=none").stdout
    assert re.search(r"Reusing \d+ labels", again) and "Reusing the predictor" in again
    assert "Labelling" not in again

    out = tmp_path / "pruned"
    run("prune", f"policy={policy_file}", f"out={out}", "logger=none")
    pruned = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    whole = matrices(LlamaForCausalLM.from_pretrained(llama2))
    assert (whole - matrices(pruned)) / whole == pytest.approx(
        policy["ratio"]["achieved"], abs=1e-6
    )
    tokens = AutoTokenizer.from_pretrained(out)("Hello", return_tensors="pt")
    assert pruned.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1] == 9

    live = run("evaluate", f"policy={policy_file}", "dtype=float32", "logger=none").stdout
    folder = run("evaluate", f"path={out}", "dtype=float32", "logger=none").stdout
    assert "uniform" in live and "4 windows of 64 tokens" in live
    assert nll(live, "PPF") == pytest.approx(nll(folder, "pruned"), abs=1e-4)

    other = tmp_path / "other.json"
    policy["config"]["text"]["seed"] = 1
    other.write_text(json.dumps(policy))
    refused = run("prune", f"policy={other}", f"out={out}", ok=False).stderr
    assert "the model, the text or the dtype has changed" in refused


def matrices(model: PreTrainedModel) -> int:
    """Weights of all decoder layers' projections, which the ratio counts; not their biases."""
    return sum(p.numel() for name, p in model.named_parameters() if "proj" in name and p.ndim == 2)


def nll(table: str, row: str) -> float:
    line = next(x for x in table.splitlines() if x.strip().startswith(row))
    return float(line.split()[5])
