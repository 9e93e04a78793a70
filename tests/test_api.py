"""The Python interface: the same chain as by commands, on a loaded model."""

import json
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

import ppf
from ppf import api
from ppf.errors import PPFError
from ppf.llm import load
from ppf.overrides import written
from tests.articles import write_articles
from tests.records import examples
from tests.searched import write_agent, write_search

TEXT = {"window": 64, "windows": {"calibration": 4, "labelling": 2, "test": 2}}
QUICK = {
    "space": {"channel_multiple": 64},
    "search": {"rounds": 1},
    "agent": "uniform",
    "predictor": "sensitivity",
    "logger": "none",
}
_KINDS = ("attention", "mlp")


def test_arguments_are_written_as_overrides() -> None:
    given = {"agent": "ppo", "labels": {"count": 8}, "tasks": ["a", "b c"], "policy": None}
    assert list(written(given)) == [
        "agent=ppo",
        "labels.count=8",
        'tasks=[a,"b c"]',
        "policy=null",
    ]
    screened = {"predictor": "oracle", "predictor.screening": [{"windows": 1, "keep": 4}]}
    cfg = api._composed("search", screened)
    assert cfg.predictor.screening == [{"windows": 1, "keep": 4}]
    cfg = api._composed("evaluate", {"path": "a folder/b", "latency": True})
    assert cfg.path == "a folder/b" and cfg.latency is True and cfg.policy is None


def test_another_programs_hydra_is_set_aside(tmp_path: Path) -> None:
    """A function of PPF runs inside a Hydra application, which keeps its config and overrides."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "own.yaml").write_text("ratios: [1]")
    (tmp_path / "own.py").write_text(
        "import hydra, ppf\n"
        "from ppf.errors import PPFError\n"
        "from hydra.core.hydra_config import HydraConfig\n"
        "@hydra.main(config_path='conf', config_name='own', version_base=None)\n"
        "def main(cfg):\n"
        "    try:\n"
        "        ppf.search('gone')\n"
        "    except PPFError as error:\n"
        "        print(error)\n"
        "    print(HydraConfig.get().overrides.task, cfg.ratios)\n"
        "main()\n"
    )
    command = [sys.executable, tmp_path / "own.py", "ratios=[0.1,0.2]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    told, kept = done.stdout.splitlines()
    assert told.startswith("model=gone is unknown") and kept == "['ratios=[0.1,0.2]'] [0.1, 0.2]"


def test_ctrl_c_in_code_that_calls_ppf_is_its_own() -> None:
    code = "import ppf.cli; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Interrupted" not in done.stderr and "KeyboardInterrupt" in done.stderr


def test_public_names_are_there_and_imported_at_their_first_use() -> None:
    assert all(hasattr(ppf, name) for name in ppf.__all__) and ppf.__version__
    shown = pydoc.plain(pydoc.render_doc(ppf))
    assert all(f" {name}(" in shown for name in ppf.__all__)
    code = "import sys, ppf; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_override_is_an_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, told in (
        ({"labels": {"count": -1}}, r"labels\.count"),
        ({"predictor._target_": "my.Missing"}, r"my\.Missing cannot be imported"),
        ({"search": {"roundz": 1}}, r"no key search\.roundz: do you mean search\.rounds\?"),
    ):
        with pytest.raises(PPFError, match=told):
            ppf.search("tiny", **given)
    with pytest.raises(PPFError):
        ppf.prune("missing.json")
    folders = [path for path in tmp_path.rglob("*") if path.parts[-2] in ("prune", "search")]
    assert not folders


@pytest.mark.parametrize("command", ["search", "prune", "recover", "evaluate"])
def test_a_run_folder_lies_where_the_overrides_say(command: str, tmp_path: Path) -> None:
    outputs = tmp_path / "my outputs"
    cfg = api._composed(command, {"paths": {"outputs": outputs}})
    folder = Path(cfg.paths.run)
    assert folder.is_relative_to(outputs / command) and len(folder.parts[len(outputs.parts) :]) == 3
    own = api._composed(command, {"paths": {"run": tmp_path}})
    assert own.paths.run == str(tmp_path)


def test_recover_takes_a_policy(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_search(tmp_path, cache)
    folder = ppf.recover(
        tmp_path / "policy.json",
        tmp_path / "recovered",
        text={
            "path": tmp_path / "text.txt",
            "window": 32,
            "training": {"windows": {"validation": 2}},
        },
        recovery={"tokens": 256},
        paths={"artefacts": tmp_path / "artefacts"},
        tune="lora",
        logger="none",
    )
    record = json.loads((folder / "policy.json").read_text())["recovered"]
    assert record["tune"] == ["lora"] and record["tokens"] == 256


def test_prune_takes_the_search_of_an_agent(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, context = write_search(tmp_path, cache)
    write_agent(tmp_path, context)
    places = {"cache": cache, "artefacts": tmp_path / "artefacts"}
    found = api.SearchResult(tmp_path)
    folder = ppf.prune(search=found, ratio=0.2, out="small", paths=places, logger="none")
    record = json.loads((folder / "policy.json").read_text())
    assert record["ratio"]["asked"] == 0.2 and (folder / "model.safetensors").is_file()
    converted = ppf.prune(path=folder, out="small.gguf", export="gguf", logger="none")
    assert converted.stat().st_size > 1000


def test_a_result_trusts_the_classes_that_its_search_trusted(tmp_path: Path, cache: str) -> None:
    write_search(tmp_path, cache)
    file = tmp_path / "policy.json"
    file.write_text(file.read_text().replace("ppf.pruning.compensation.", "my_package."))
    with pytest.raises(PPFError, match="trust_targets"):
        _ = api.SearchResult(tmp_path).record
    named = json.loads(file.read_text())["config"]["compensation"]["_target_"]
    trusting = api.SearchResult(tmp_path, [named])
    assert trusting.kept
    cfg = api._composed("evaluate", {}, trusting)
    assert cfg.policy == str(file) and cfg.trust_targets == [named]


@pytest.mark.slow
def test_search_prune_and_evaluate_a_loaded_model(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with initialize_config_module("ppf.conf", version_base="1.3"):
        lm = load(compose("collect", ["model=tiny"]).model, cache)
    text = TEXT | {"path": write_articles(tmp_path)}
    places = {"outputs": tmp_path / "elsewhere"}
    found = ppf.search(lm.model, 0.4, tokenizer=lm.tokenizer, text=text, paths=places, **QUICK)
    assert found.ratio >= 0.4 and found.perplexity > 1
    assert found.folder.is_relative_to(tmp_path / "elsewhere")
    assert set(found.kept) == {f"{layer}.{kind}" for layer in range(4) for kind in _KINDS}
    folder = ppf.prune(found, tmp_path / "pruned", logger="none")
    measured = ppf.evaluate(path=folder, logger="none")["results"]
    assert [row["name"] for row in measured] == ["pruned"] and measured[0]["perplexity"] > 1


def test_a_result_tells_what_its_policy_reaches(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps(examples.policy()))
    found = api.SearchResult(tmp_path)
    assert (found.ratio, found.perplexity) == (0.31, 190.5), "neither asked nor predicted"
    assert found.kept == dict.fromkeys(examples.UNITS, 2)
