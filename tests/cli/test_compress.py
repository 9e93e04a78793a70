"""compress.py: from the search to a file of the wanted size, by the command that a user types."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize

from ppf.export.gguf import GGUF
from ppf.export.gguf_tensors import file_bytes, round_weights
from ppf.stages import recover
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model
from tests.cli.conftest import Run
from tests.export.conftest import POLICY, export_gguf

SMALL = (
    *("model=tiny", "space.channel_multiple=32", "logger=csv", "text.window=32"),
    *("text.windows={calibration:4,labelling:2,test:2}", "text.training.windows.validation=4"),
    *("search.rounds=1", "search.selection_windows=2", "predictor=sensitivity", "refit_windows=2"),
    *("recovery.tokens=256", "recovery.batch=4", "recovery.micro_batch=2"),
    *("recovery.validate_every=2", "speed={batches:[1],prompt:8,new_tokens:4,repeats:1}"),
)


@pytest.mark.slow
def test_a_file_of_the_wanted_size_beside_the_dense_model(
    run: Run, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = recover._row

    def training_changes_the_loss_by(nats: float) -> None:
        monkeypatch.setattr(recover, "_row", lambda *losses: row(*losses[:3], losses[2] + nats))

    training_changes_the_loss_by(-1)
    given = "target=0.24MiB", "export.type=q8_0", "latency=true", "prompts=[Article]"
    said = run("compress", *SMALL, text, *given).stdout
    (file,) = tmp_path.rglob("*.gguf")
    assert 0.5 * 0.24 * 2**20 < file.stat().st_size <= 0.24 * 2**20
    assert "(params) of what space=width may remove is searched." in said
    (card,) = (path.read_text() for path in tmp_path.rglob("model/README.md"))
    assert "Its perplexity is" in card and "| recovered, q8_0 | " in card

    (evaluation,) = tmp_path.rglob("evaluation.json")
    results = {row["name"]: row for row in json.loads(evaluation.read_text())["results"]}
    models = ["dense", "pruned", "recovered"]
    assert list(results) == [name for model in models for name in (model, f"{model}, q8_0")]
    assert results["recovered"]["parameters"] == results["pruned"]["parameters"]
    assert results["recovered"]["nll"] != results["pruned"]["nll"]
    assert results["dense"]["speed"] and not results["dense, q8_0"]["speed"]
    assert all(row["answers"].keys() == {"Article"} for row in results.values())
    page = evaluation.with_name("report.html").read_text()
    assert "Weights: dense" in page and "Answers" in page
    for name in ("search", "pruned", "recovered"):
        assert (evaluation.parent / name).is_dir()

    again = (*SMALL, text, "ratio=0.3", "export=huggingface")
    done = run("compress", *again, "recover=false").stdout
    assert "recovered" not in done.partition("evaluate\n")[2]

    training_changes_the_loss_by(1)
    done = run("compress", *again, f"paths.run={tmp_path}/bad").stdout
    assert "the pruned model is exported without it" in done
    found = [(tmp_path / "bad" / x / "model.safetensors").read_bytes() for x in ("pruned", "model")]
    assert found[0] == found[1]
    rows = json.loads((tmp_path / "bad" / "evaluation.json").read_text())["results"]
    assert [row["name"] for row in rows] == ["dense", "recovered", "pruned"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["target=1GiB"], "cannot be reached: in this format the dense model has"),
        (["target=5X"], "target=5X cannot be reached"),
        (["mode=chain"], "leave mode=static"),
        (["budget=bytes", "rules=bytes", "agent=evolution"], "give recover=false"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(run: Run, given: list[str], said: str) -> None:
    assert said in run("compress", "model=tiny", *given, ok=False).stderr


def test_rounded_weights_are_those_of_the_file(tmp_path: Path) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["llama-32-heads-untied"]), channel_multiple=32)
    model, type = pruner.lm.model, "q4_0"
    policy = POLICY | {"types": {"1.mlp": "q8_0", "2.attention": "f16"}}
    reader = GGUFReader(export_gguf(pruner, tmp_path / "own", policy, type=type))
    total = sum(tensor.n_bytes for tensor in reader.tensors)
    assert file_bytes(model, type, policy["types"]) == total
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type=type))
    stored = {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    assert file_bytes(model, type) == sum(tensor.n_bytes for tensor in reader.tensors)
    assert GGUF(type, 0).bytes(model, pruner.lm.tokenizer) > file_bytes(model, type)
    round_weights(model, type)
    own = model.state_dict()
    for name, expected in {
        "token_embd.weight": own["model.embed_tokens.weight"],
        "output.weight": own["lm_head.weight"],
        "blk.1.ffn_down.weight": own["model.layers.1.mlp.down_proj.weight"],
        "blk.2.attn_norm.weight": own["model.layers.2.input_layernorm.weight"],
    }.items():
        torch.testing.assert_close(stored[name].view_as(expected), expected, atol=0, rtol=0)
