"""The Python interface: the same chain as by commands, on a loaded model."""

import json
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

import ppf
from ppf import api
from ppf.errors import PPFError
from ppf.llm import load
from tests.articles import write_articles
from tests.composing import command_config
from tests.searched import write_search

TEXT = {"window": 64, "windows": {"calibration": 4, "labelling": 2}}
QUICK = {
    "space": {"channel_multiple": 64},
    "search": {"rounds": 1},
    "agent": "uniform",
    "predictor": "sensitivity",
    "logger": "none",
}
_KINDS = ("attention", "mlp")


def test_arguments_are_written_as_overrides() -> None:
    screened = {"predictor": "oracle", "predictor.screening": [{"windows": 1, "keep": 4}]}
    cfg = api._composed("search", screened)
    assert cfg.predictor.screening == [{"windows": 1, "keep": 4}]
    cfg = api._composed("evaluate", {"path": "a folder/b", "latency": True})
    assert cfg.path == "a folder/b" and cfg.latency is True and cfg.policy is None
    cfg = api._composed("prune", {"paths": {"outputs": "my outputs"}})
    assert cfg.paths.run.startswith("my outputs/prune/")
    assert api._composed("prune", {"paths": {"run": "mine"}}).paths.run == "mine"


def test_another_programs_hydra_is_set_aside() -> None:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        own = GlobalHydra.instance().hydra
        with pytest.raises(PPFError, match="model=gone is unknown"):
            ppf.search("gone")
        assert own is not None and GlobalHydra.instance().hydra is own


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
    assert api._composed("prune", {"search": trusting}).search == str(tmp_path)


@pytest.mark.slow
def test_a_loaded_model_is_searched(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lm = load(command_config("collect", ["model=tiny"]).model, cache)
    text = TEXT | {"path": write_articles(tmp_path)}
    places = {"outputs": tmp_path / "elsewhere"}
    found = ppf.search(lm.model, 0.4, tokenizer=lm.tokenizer, text=text, paths=places, **QUICK)
    assert found.ratio >= 0.4 and found.perplexity > 1
    assert found.folder.is_relative_to(tmp_path / "elsewhere")
    assert set(found.kept) == {f"{layer}.{kind}" for layer in range(4) for kind in _KINDS}
