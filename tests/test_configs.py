"""Every YAML composes under a stage that can choose it, and fits what it instantiates."""

import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from ppf.arguments import components
from ppf.cli.checks import check_values
from ppf.commands import COMMANDS
from ppf.conf import command_of, job_folder, options, read_option, taken_groups

ROOT = Path(__file__).parents[1]
CONF = ROOT / "ppf" / "conf"
STAGES = sorted(COMMANDS)
FILES = sorted(p for p in CONF.rglob("*.yaml") if p.parent.name != "local")
_SWEPT = "hydra.sweeper.params"
FOLDERS = sorted({p.parent.relative_to(CONF).as_posix() for p in FILES if p.parent != CONF})
GROUPED = [f for f in FOLDERS if not f.startswith("experiment/")]  # its sub-folders are no groups
OPTIONS = [(group, option) for group in GROUPED for option in options(group)]
SEVERAL = {group for group, count in Counter(group for group, _ in OPTIONS).items() if count > 1}
# Options of a certain command, which their first comment names.
STUDIES = {
    (group, option): command
    for group, option in OPTIONS
    if (command := command_of(options(group)[option])) is not None
}

KEYS = 297  # in all groups and commands, except those of CHANGING
# Options of these groups change others, or need the default agent.
CHANGING = ("agent/every", "debug", "experiment", "hparams_search", "polish", "rules")

Choices = Mapping[str, str]  # group (with its package, where it is not the group's own) → option


def composed(stage: str, choices: Choices) -> DictConfig:
    """A stage's config with Hydra's own part."""
    return _composed(stage, tuple(f"{group}={option}" for group, option in choices.items())).copy()


@cache
def _composed(stage: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose(stage, list(overrides), return_hydra_config=True)


def inside(group: str) -> set[tuple[str, str]]:
    """The options of a group's sub-groups."""
    return {case for case in OPTIONS if case[0].startswith(f"{group}/") and case[0] in SEVERAL}


@cache
def cases(stage: str) -> list[tuple[str, str, Choices]]:
    """Each option that a stage can choose: its group, its name, and the choices that lead there."""
    found: dict[tuple[str, str], Choices] = {}
    waiting: list[tuple[Choices, set[str]]] = [({}, set())]
    others = {f for f in FOLDERS if f.rpartition("/")[2] in {*STAGES} - {stage}}
    while waiting:
        so_far, inner = waiting.pop()
        if so_far and inner <= {group for group, _ in found}:
            continue
        cfg = composed(stage, so_far)
        for key in dict.fromkeys([*cfg.hydra.runtime.choices, *taken_groups(cfg)]):
            group = key.split("@")[0]
            for option in (name for place, name in OPTIONS if place == group):
                if (group, option) in STUDIES and stage != STUDIES[group, option]:
                    continue
                if (group, option) not in found:
                    found[group, option] = so_far | {key: option}
                    own = {place for place, _ in inside(group) if place not in others}
                    waiting.append((found[group, option], own))
    return [(group, option, choices) for (group, option), choices in sorted(found.items())]


def together(found: list[tuple[str, str, Choices]]) -> list[Choices]:
    """Joins options that do not contradict, since each composition takes a quarter of a second.

    Those that change other groups stay alone.
    """
    alone = [choices for group, _, choices in found if group in CHANGING]
    rows: list[dict[str, str]] = []
    for choices in (choices for group, _, choices in found if group not in CHANGING):
        for row in rows:
            if all(row.get(key, option) == option for key, option in choices.items()):
                row |= choices
                break
        else:
            rows.append(dict(choices))
    return [*alone, *rows]


def resolved(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The plain config that a run in `folder` gets."""
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    finally:
        HydraConfig.instance().cfg = None


def test_every_command_has_a_config_and_a_shim() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {f"ppf-{stage}": "ppf.cli.start:main" for stage in COMMANDS}
    for stage in STAGES:
        assert (CONF / f"{stage}.yaml").is_file()
        assert "from ppf.cli.start import main" in (ROOT / f"{stage}.py").read_text("utf-8")


def test_the_agent_of_a_rule_has_the_rule_of_its_name() -> None:
    files = options("agent").items()
    contents = {name: OmegaConf.to_container(OmegaConf.load(file)) for name, file in files}
    rules = {name: part["allocation"] for name, part in contents.items() if "allocation" in part}
    assert rules == {name: f"${{rules.{name}}}" for name in rules} and len(rules) == 7


def chosen(cfg: DictConfig) -> set[tuple[str, str]]:
    """The options that a composed config has chosen."""
    return {(key.split("@")[0], name) for key, name in cfg.hydra.runtime.choices.items()}


@pytest.mark.slow
def test_every_option_composes_with_a_command_that_accepts_it(tmp_path: Path) -> None:
    seen = {case for case in OPTIONS if case[0] == "experiment"}
    # Commands that share a base compose an option alike; a search takes most of them.
    for stage in sorted(STAGES, key=lambda stage: stage != "search"):
        cfg = composed(stage, {})
        seen |= chosen(cfg)
        default = resolved(cfg, tmp_path)
        assert default["paths"]["run"] == str(tmp_path)
        check_values(default)
        for choices in together([case for case in cases(stage) if case[:2] not in seen]):
            cfg = composed(stage, choices)
            seen |= chosen(cfg) | {(key.split("@")[0], name) for key, name in choices.items()}
            check_values(resolved(cfg, tmp_path))
    assert not set(OPTIONS) - seen, "no command can choose these"


@pytest.mark.slow
@pytest.mark.parametrize("study", [case for case in STUDIES if case[0] == "experiment"])
def test_every_experiment_composes_with_its_command(study: tuple[str, str], tmp_path: Path) -> None:
    check_values(resolved(composed(STUDIES[study], dict([study])), tmp_path))


def inherits(file: Path) -> bool:
    return "defaults:" in file.read_text(encoding="utf-8")


@pytest.mark.slow
def test_options_are_read_with_what_they_inherit_as_hydra_composes_them() -> None:
    groups = ("text", "space", "model", "importance", "compensation")
    names = [[n for n, file in options(group).items() if inherits(file)][:5] for group in groups]
    for row in zip_longest(*names):
        choices = {group: name for group, name in zip(groups, row, strict=True) if name}
        cfg = composed("collect", choices)
        for group, name in choices.items():
            assert read_option(group, name) == cfg[group]


@pytest.mark.slow
def test_help_lists_the_options_that_a_command_takes() -> None:
    for stage in STAGES:
        cfg, group = composed(stage, {}), ""
        shown: set[tuple[str, str]] = set()
        for line in cfg.hydra.help.template.splitlines():
            if found := re.fullmatch(r"(\S+):", line):
                group = found[1]
            elif found := re.match(r"  (\S+)  ", line):
                shown.add((group, found[1]))
        taken = {*cfg.hydra.runtime.choices, *({"logger", "loss", "tune"} & set(cfg))} & SEVERAL
        own = {case for case in OPTIONS if case[0] in taken and "/" not in case[0]}
        assert shown == {case for case in own if STUDIES.get(case, stage) == stage}, stage


def test_every_study_names_its_command() -> None:
    studies = {case for case in OPTIONS if case[0] in ("experiment", "hparams_search")}
    assert {case for case in studies if case[1] != "none"} == STUDIES.keys()
    assert set(STUDIES.values()) <= set(STAGES)


def test_every_study_sweeps_over_options_that_exist() -> None:
    parser, swept = OverridesParser.create(), set[str]()
    for study, file in options("experiment").items():
        for key, values in (OmegaConf.select(OmegaConf.load(file), _SWEPT) or {}).items():
            if not (known := options(key)):
                continue
            override = parser.parse_override(f"{key}={values}")
            several = override.is_sweep_override()
            for value in override.sweep_string_iterator() if several else [str(values)]:
                assert {*value.strip("[]").split(",")} <= known.keys(), (study, key, value)
            swept.add(key)
    assert {"agent", "tune", "predictor"} <= swept


def test_long_names_of_jobs_fit_into_file_systems_and_stay_apart() -> None:
    assert job_folder("0-agent-ppo_ratio-0.3") == "0-agent-ppo_ratio-0.3"
    assert job_folder("policy-a-b.json") == "policy-a-b.json"
    assert job_folder("policy-a/b.json").startswith("policy-a-b.json-"), "another one's folder"
    assert job_folder("") == "default", "the folder of the multirun has a report of its own"
    names = [job_folder(f"{'text.source-ü' * 40}_seed-{seed}") for seed in range(3)]
    assert len(set(names)) == 3 and all(len(name.encode()) <= 200 for name in names)


# Their defaults are for Python, and for records of earlier commits.
PUBLIC = [
    *("ppf.load_agent", "ppf.llm.sources.hub", "ppf.text.corpora.hub"),
    "ppf.space.build_space",
]


def test_defaults_live_once() -> None:
    twice = {}
    for file in FILES:
        for _, node in components(OmegaConf.to_container(OmegaConf.load(file))):
            if node["_target_"].startswith("ppf.") and node["_target_"] not in PUBLIC:
                given = inspect.signature(get_object(node["_target_"])).parameters.items()
                if both := {n for n, p in given if n in node and p.default is not p.empty}:
                    twice[file] = both
    assert not twice


def keys_of(node: dict[str, Any], above: str = "") -> Iterator[str]:
    """The keys of a config file that hold a value, without `_target_` and its kind."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{above}{key}.")
        elif not str(key).startswith("_") and key != "defaults":
            yield f"{above}{key}"


def test_keys_do_not_grow_unnoticed() -> None:
    """An option needs somebody who chooses it: whoever adds one raises KEYS."""
    found = set[tuple[str, str]]()
    for file in FILES:
        group = file.relative_to(CONF).parent.as_posix()
        if group.split("/")[0] not in ("debug", "experiment", "hparams_search"):
            content: Any = OmegaConf.to_container(OmegaConf.load(file))
            found |= {(file.stem if group == "." else group, key) for key in keys_of(content)}
    assert len(found) <= KEYS


def test_root_links_to_the_packaged_configs() -> None:
    assert (ROOT / "conf").is_symlink()
    assert (ROOT / "conf").resolve() == CONF
