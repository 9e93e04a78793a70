"""The code on the pages about extending PPF, and on the page about Python, runs as it stands."""

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from transformers import OlmoConfig

import ppf
from ppf.llm import families
from tests import checkpoints
from tests.articles import write_articles
from tests.cli.conftest import HASTY
from tests.commands import exit_code
from tests.llm import test_adapters
from tests.searched import write_search

ROOT = Path(__file__).parents[1]
FILE = re.compile(r'```\w+ title="([^"]+)"\n(.*?)```', re.DOTALL)
QUICK = ("search.rounds=1", "text.window=64", "text.windows.labelling=2", "logger=csv")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
YAML = re.compile(r"```yaml\n(# @package _global_\n.*?)```", re.DOTALL)
COMMAND = re.compile(r"^PYTHONPATH=FOLDER python (\w+)\.py (.*)$", re.MULTILINE)


def test_the_configs_of_the_page_about_sweeps_compose(tmp_path: Path) -> None:
    study, local = YAML.findall((ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8"))
    for name, content in (("experiment/mine", study), ("local/default", local)):
        (tmp_path / f"{name}.yaml").parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    given = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("search", given, return_hydra_config=True)
    assert cfg.labels.count == 256 and cfg.hydra.sweeper.params.ratio == "0.2,0.3"
    assert cfg.paths.outputs == "/scratch/me/ppf"


def test_the_code_that_loads_a_pruned_folder_runs(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_search(tmp_path, cache)
    places = {"cache": cache, "artefacts": tmp_path / "artefacts"}
    ppf.prune(tmp_path / "policy.json", "pruned", paths=places, logger="none")
    for page, kind in (("first-search", "PrunedForCausalLM"), ("vllm", "PrunedModel")):
        (block,) = PYTHON.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
        names: dict[str, Any] = {}
        exec(block, names)  # noqa: S102
        assert type(names["model"]).__name__ == kind


def write_files(page: str, folder: Path) -> str:
    """Writes a page's titled blocks and returns its text."""
    text = (ROOT / "docs" / "extend" / f"{page}.md").read_text(encoding="utf-8")
    for name, content in FILE.findall(text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return text


@pytest.mark.slow
@pytest.mark.usefixtures("short_text")
def test_the_python_page_runs(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    blocks = PYTHON.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore"):
        for block in blocks:
            exec(block, names)  # noqa: S102
    assert names["found"].ratio >= 0.3 and (tmp_path / "recovered" / "policy.json").is_file()
    said = capsys.readouterr().out
    assert "0.attention" in said and all(name in said for name in ("pruned", "recovered"))
    assert names["model"].ratio >= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("page", ["agent", "predictor"])
def test_the_command_of_a_page_runs(
    page: str,
    cache: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ((script, arguments),) = COMMAND.findall(write_files(page, tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))  # what PYTHONPATH=FOLDER does
    monkeypatch.chdir(tmp_path)
    paths = [f"paths.outputs={tmp_path}/outputs", f"paths.artefacts={cache}/artefacts"]
    small = [f"text.path={write_articles(tmp_path)}", "text.windows.calibration=8"]
    more = [*small, *(HASTY if page == "agent" else ())]  # the agent's with a learned predictor
    given = [*shlex.split(arguments.replace("FOLDER", ".")), *paths, *QUICK, *more]
    code, said = exit_code(script, given), capsys.readouterr()
    assert code == 0, said.out + said.err
    assert "policy.json" in said.out


def test_the_familys_config_passes_the_tests_of_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_files("family", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from olmo import OlmoAdapter

    monkeypatch.setattr(families, "ADAPTERS", (*families.ADAPTERS, OlmoAdapter))
    (entry,) = re.findall(r"```python\n(\"olmo\": .*?)```", text, re.DOTALL)
    names = {"OlmoConfig": OlmoConfig, "_SMALL": checkpoints._SMALL}
    config = eval(f"{{{entry}}}", names)["olmo"]  # noqa: S307
    test_adapters.test_masked_and_live_pruned_logits_agree(config)
    test_adapters.test_live_pruned_and_exported_logits_agree(config, tmp_path / "out")
    test_adapters.test_widths_of_dense_blocks_equal_the_config(config)
