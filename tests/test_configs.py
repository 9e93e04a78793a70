"""Every YAML composes under every stage that has its group, and fits what it instantiates."""

import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

ROOT = Path(__file__).parents[1]
CONF = ROOT / "ppf" / "conf"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
STAGES = sorted(name.removeprefix("ppf-") for name in SCRIPTS)
# Hydra's own group: its config comes with the defaults; launchers and sweepers may need an extra.
OPTIONS = sorted(
    (str(p.parent.relative_to(CONF)), p.stem)
    for p in CONF.rglob("*.yaml")
    if p.parent != CONF and p.relative_to(CONF).parts[0] != "hydra"
)


def groups(config: str) -> set[str]:
    """The config groups in the defaults list of a root config and of those it builds on."""
    found: set[str] = set()
    for entry in OmegaConf.load(CONF / f"{config}.yaml").get("defaults", []):
        if isinstance(entry, str):
            found |= groups(entry) if entry != "_self_" else set()
        else:
            found |= {str(key).split()[-1].lstrip("/") for key in entry}
    return found


CASES = [
    (stage, group, option)
    for stage in STAGES
    for group, option in OPTIONS
    if group in groups(stage)
]


def composed(stage: str, overrides: list[str], folder: Path) -> DictConfig:
    """A stage's config as a run in `folder` gets it."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose(stage, overrides, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """All parts of a plain config that name a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from targets(value)


def check_target(node: dict[str, Any]) -> None:
    """The target exists and takes what is given; ours have no second default for it."""
    target = node["_target_"]
    parameters = inspect.signature(get_object(target)).parameters
    given = {key for key in node if not key.startswith("_")}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        assert given <= set(parameters), f"{target} does not take {given - set(parameters)}"
    if target.startswith("ppf."):
        twice = {name for name in given if parameters[name].default is not inspect.Parameter.empty}
        assert not twice, f"{target} has defaults for {twice}, which its YAML gives"


@pytest.mark.parametrize("stage", STAGES)
def test_every_command_has_a_config_and_a_shim(stage: str) -> None:
    assert SCRIPTS[f"ppf-{stage}"] == f"ppf.cli.{stage}:main"
    assert (CONF / f"{stage}.yaml").is_file()
    assert f"from ppf.cli.{stage} import main" in (ROOT / f"{stage}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_stage_composes(stage: str, tmp_path: Path) -> None:
    cfg = composed(stage, [], tmp_path)
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert str(tmp_path) in str(resolved["paths"]["run"])


@pytest.mark.parametrize(("stage", "group", "option"), CASES)
def test_option_composes_and_fits_its_targets(
    stage: str, group: str, option: str, tmp_path: Path
) -> None:
    cfg = composed(stage, [f"{group}={option}"], tmp_path)
    OmegaConf.to_container(cfg, resolve=True)
    for node in targets(OmegaConf.to_container(cfg, resolve=False)):
        check_target(node)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_belongs_to_a_stage(group: str, option: str) -> None:
    assert any((group, option) == case[1:] for case in CASES)


def test_root_links_to_the_packaged_configs() -> None:
    assert (ROOT / "conf").is_symlink()
    assert (ROOT / "conf").resolve() == CONF
