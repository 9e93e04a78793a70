"""budget=bytes on the tiny model: search → evaluate → a GGUF file of the promised size."""

import csv
import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from tests.cli.conftest import Run

SEARCH = (
    *("model=tiny", "space=mlp", "space.channel_multiple=32", "debug=limit", "logger=csv"),
    *("budget=bytes", "rules=bytes", "ratio=0.7", "report_test=true"),
    *("agent=evolution", "agent.generations=8", "agent.children=32"),
)


@pytest.mark.slow
def test_the_file_has_the_bytes_that_the_search_counted(
    run: Run, text: str, tmp_path: Path
) -> None:
    said = run("search", *SEARCH, text).stdout
    assert "expected" in said
    (found,) = tmp_path.rglob("policy.json")
    policy = json.loads(found.read_text())
    assert policy["budget"]["name"] == "bytes" and policy["budget"]["saved"] >= 0.7
    assert len(set(policy["types"].values()) - {"f16"}) > 0

    run("evaluate", f"policy={found}", "sequential=false", "dtype=float32", "logger=none")
    (evaluation,) = tmp_path.rglob("evaluation.json")
    results = {r["name"]: r for r in json.loads(evaluation.read_text())["results"]}
    (summary,) = tmp_path.rglob("summary.json")
    rows = {
        r["policy"]: r["test"] for r in json.loads(summary.read_text())["results"] if "test" in r
    }
    for name in ("dense", "uniform", "PPF"):
        assert results[name]["perplexity"] == pytest.approx(rows[name]["perplexity"], rel=1e-4)
    assert results["PPF"]["ratio"] == pytest.approx(policy["budget"]["saved"], abs=1e-9)
    assert results["PPF"]["bytes"] < results["dense"]["bytes"]

    run("prune", f"policy={found}", f"out={tmp_path}/gguf", "export=gguf", "sequential=false",
        "logger=csv")  # fmt: skip
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    (lines,) = (p.read_text().splitlines() for p in tmp_path.glob("outputs/prune/**/metrics.csv"))
    (logged,) = csv.DictReader(lines)
    assert float(logged["bytes"]) == file.stat().st_size and "one_shot/perplexity" in logged
    ffn = [t for t in GGUFReader(file).tensors if "ffn" in t.name and len(t.shape) == 2]
    for tensor in ffn:
        site = f"{tensor.name.split('.')[1]}.mlp"
        if policy["kept"][site]:
            assert tensor.tensor_type.name.lower() == policy["types"][site]
    dense = 4 * 3 * 64 * 192 * 2
    left = sum(t.n_bytes for t in ffn if policy["kept"][f"{t.name.split('.')[1]}.mlp"])
    assert 1 - left / dense == pytest.approx(policy["budget"]["saved"], abs=1e-9)

    (run_json,) = (json.loads(file.read_text()) for file in found.parent.glob("run.json"))
    assert run_json["figures"][0]["matrices_mib"] == pytest.approx(left / 2**20)
    assert run_json["figures"][0]["test_ppl"] == rows["PPF"]["perplexity"]

    for refusing in (("serve", f"search={found.parent}"), ("recover", f"policy={found}")):
        assert "the policy quantises weights" in run(*refusing, ok=False).stderr
