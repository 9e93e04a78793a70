"""The Python interface: the same chain as by commands, on a loaded model."""

import json
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

import ppf
from ppf import api
from ppf.errors import PPFError
from ppf.llm import load
from ppf.overrides import written
from ppf.policy_search import Found, Static
from tests.articles import write_articles
from tests.checkpoints import CHECKPOINTS, random_model
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


def test_arguments_are_written_as_overrides() -> None:
    given = {"agent": "ppo", "labels": {"count": 8}, "tasks": ["a", "b c"], "policy": None}
    screened = {"predictor": "oracle", "predictor.screening": [{"windows": 1, "keep": 4}]}
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("search", list(written(screened)))
    assert cfg.predictor.screening == [{"windows": 1, "keep": 4}]
    assert list(written(given)) == [
        "agent=ppo",
        "labels.count=8",
        'tasks=[a,"b c"]',
        "policy=null",
    ]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("evaluate", list(written({"path": "a folder/b", "latency": True})))
    assert cfg.path == "a folder/b" and cfg.latency is True


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


def test_public_names_are_there() -> None:
    assert all(hasattr(ppf, name) for name in ppf.__all__)
    assert set(ppf.__all__) <= set(dir(ppf)) and ppf.__version__
    shown = pydoc.plain(pydoc.render_doc(ppf))
    assert all(f" {name}(" in shown for name in ppf.__all__)


def test_the_import_is_lazy() -> None:
    code = "import sys, ppf; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"labels": {"count": -1}}, r"labels\.count"),
        ({"labels": {"count": "x"}}, r"labels\.count=x"),
        ({"predictor._target_": "my.Missing"}, r"my\.Missing cannot be imported"),
    ],
)
def test_a_wrong_override_is_an_error_and_not_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PPFError, match=told):
        ppf.search("tiny", **given)


def test_a_refused_call_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PPFError):
        ppf.prune("missing.json")
    assert not [path for path in tmp_path.rglob("*") if path.parts[-2] == "prune"]


def test_a_refused_search_leaves_no_copy_of_a_loaded_model(tmp_path: Path) -> None:
    lm = random_model(CHECKPOINTS["llama-biases"])
    given = {"paths": {"run": tmp_path / "run"}, "agent": "uniform", "labels": {"context": 600}}
    with pytest.raises(PPFError, match="context"):
        ppf.search(lm.model, tokenizer=lm.tokenizer, **given)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loaded_model_whose_generation_settings_contradict_is_copied(tmp_path: Path) -> None:
    lm = random_model(CHECKPOINTS["llama-biases"])
    lm.model.generation_config.temperature = 0.9  # `save_pretrained` refuses it without do_sample
    api._save(lm.model, lm.tokenizer, str(tmp_path / "copy"))
    written = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
    assert written["temperature"] == lm.model.generation_config.temperature == 0.9


def test_a_model_whose_tokenizer_is_missing_leaves_no_copy(tmp_path: Path) -> None:
    lm = random_model(CHECKPOINTS["llama-biases"])
    lm.model.name_or_path = str(tmp_path / "gone")
    with pytest.raises(Exception, match="gone"):
        ppf.search(lm.model, paths={"run": tmp_path / "run"}, agent="uniform")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "given", [{"mode": "dynamic", "ratio": 0.5}, {"ratios": [0.2]}, {"dynamic": {"knots": 4}}]
)
def test_what_a_mode_does_not_read_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PPFError, match=f"does not read {list(given)[-1]}"):
        ppf.search("tiny", **given)


def test_an_object_that_no_config_can_hold_is_refused() -> None:
    with pytest.raises(PPFError, match="is no number, text, list or dictionary"):
        ppf.search("tiny", seed=object())


def test_an_unknown_key_is_an_error_that_names_a_similar_one() -> None:
    with pytest.raises(PPFError, match=r"no key search\.roundz: do you mean search\.rounds\?"):
        ppf.search("tiny", search={"roundz": 1})


@pytest.mark.parametrize("command", ["search", "prune", "recover", "evaluate"])
def test_a_run_folder_lies_where_the_overrides_say(command: str, tmp_path: Path) -> None:
    outputs = tmp_path / "my outputs"
    cfg = api._composed(command, written({"paths": {"outputs": outputs}}))
    folder = Path(cfg.paths.run)
    assert folder.is_relative_to(outputs / command) and len(folder.parts[len(outputs.parts) :]) == 3
    own = api._composed(command, written({"paths": {"run": tmp_path}}))
    assert own.paths.run == str(tmp_path)


def test_an_experiment_of_another_command_is_refused() -> None:
    with pytest.raises(PPFError, match="is for recover"):
        ppf.search("tiny", experiment="recovery/curve")


def test_results_are_read_from_the_folder_of_the_overrides(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = {"outputs": tmp_path / "elsewhere", "artefacts": f"{cache}/artefacts"}
    text = TEXT | {"path": write_articles(tmp_path)}
    found = ppf.search("tiny", 0.4, text=text, paths=outputs, **QUICK)
    assert found.folder.is_relative_to(tmp_path / "elsewhere") and found.ratio >= 0.4
    assert not (tmp_path / "outputs").exists()


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
    folder = ppf.prune(search=tmp_path, ratio=0.2, out="small", paths=places, logger="none")
    record = json.loads((folder / "policy.json").read_text())
    assert record["ratio"]["asked"] == 0.2 and (folder / "model.safetensors").is_file()
    converted = ppf.prune(path=folder, out="small.gguf", export="gguf", logger="none")
    assert converted.stat().st_size > 1000


def test_a_result_trusts_the_classes_of_its_search(tmp_path: Path, cache: str) -> None:
    write_search(tmp_path, cache)
    file = tmp_path / "policy.json"
    file.write_text(file.read_text().replace("ppf.pruning.compensation.", "my_package."))
    with pytest.raises(PPFError, match="trust_targets"):
        _ = api.SearchResult(tmp_path).record
    named = json.loads(file.read_text())["config"]["compensation"]["_target_"]
    assert named.startswith("my_package.")
    assert api.SearchResult(tmp_path, [named]).kept


@pytest.mark.slow
def test_search_prune_and_evaluate_a_loaded_model(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with initialize_config_module("ppf.conf", version_base="1.3"):
        lm = load(compose("collect", ["model=tiny"]).model, cache)
    text = TEXT | {"path": write_articles(tmp_path)}
    found = ppf.search(lm.model, 0.4, tokenizer=lm.tokenizer, text=text, **QUICK)
    assert found.ratio >= 0.4 and found.perplexity > 1
    assert set(found.kept) == {f"{layer}.{kind}" for layer in range(4) for kind in _KINDS}
    folder = ppf.prune(found, tmp_path / "pruned", logger="none")
    measured = ppf.evaluate(path=folder, logger="none")["results"]
    assert [row["name"] for row in measured] == ["pruned"] and measured[0]["perplexity"] > 1


_KINDS = ("attention", "mlp")


def test_a_search_starts_from_a_policy_that_fits_its_space(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_search(tmp_path, cache, "space.channel_multiple=64")
    kept = json.loads((tmp_path / "policy.json").read_text())["kept"]
    begun: list[list[int]] = []
    at = Static.at

    def spied(self: Static, *given: Any, **more: Any) -> Found:
        begun.append(given[-1].tolist())
        return at(self, *given, **more)

    monkeypatch.setattr(Static, "at", spied)
    text = TEXT | {"path": write_articles(tmp_path)}
    own = {"rounds": 1, "top_k": 1, "start": tmp_path / "policy.json"}
    quick = QUICK | {"agent": "evolution", "search": own}
    assert ppf.search("tiny", 0.4, text=text, **quick).ratio >= 0.4
    assert begun == [list(kept.values())]
    with pytest.raises(PPFError, match="does not fit space"):
        ppf.search("tiny", 0.4, text=text, **(quick | {"space": {"channel_multiple": 32}}))
    with pytest.raises(PPFError, match="does not fit space"):
        ppf.search("tiny", 0.4, text=text, **(quick | {"space": "mlp"}))


def test_classes_of_a_users_own_are_found_at_any_depth() -> None:
    config = {"a": {"_target_": "ppf.A", "b": [{"_target_": "mine.B"}]}, "c": [1, "mine.C"]}
    assert api._own_targets(config) == ["mine.B"]


def test_a_result_tells_what_its_policy_reaches(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps(examples.policy()))
    found = api.SearchResult(tmp_path)
    assert (found.ratio, found.perplexity) == (0.31, 190.5), "neither asked nor predicted"
    assert found.kept == dict.fromkeys(examples.UNITS, 2)


def test_results_and_folders_become_overrides(tmp_path: Path) -> None:
    found, trusted = api.SearchResult(tmp_path, ["mine.B"]), {"trust_targets": ["mine.B"]}
    assert api._sources(found, None) == {"policy": tmp_path / "policy.json"} | trusted
    assert api._sources(None, None, found) == {"search": tmp_path} | trusted
    assert api._sources("a.json", "b", "c") == {"policy": "a.json", "path": "b", "search": "c"}
    assert list(api._named("tiny")) == ["model=tiny"]
    (tmp_path / "config.json").write_text("{}")
    assert list(api._named(tmp_path)) == ["model=local", f"model.path={tmp_path}"]
