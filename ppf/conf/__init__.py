"""Hydra configs, as a package that `pkg://ppf.conf` finds, and their option groups for `--help`."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sysconfig import get_path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ppf.commands import invocation

_FOLDER = Path(__file__).parent
DEFAULT_TEXT = "wikipedia_sample"
_SEVERAL = ("logger", "loss")  # lists of their options are not among Hydra's choices
SECRET = ("api_key",)
"""Keys of the config that no logger gets."""
_UNGROUPED = ("seed=", "paths.", "traceback=", *(f"{key}=" for key in SECRET))
_LONGEST = 128  # characters of a group's name in W&B
_LONGEST_FOLDER = 200  # bytes of a job's name; file systems allow 255


@contextmanager
def without_others() -> Iterator[None]:
    """Sets aside the state of another Hydra program, which may call PPF's functions."""
    program, config = GlobalHydra.instance(), HydraConfig.instance()
    before = program.hydra, config.cfg
    program.hydra = config.cfg = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, config.cfg = before  # Hydra may have replaced the instance


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain dicts and lists."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def options(group: str) -> dict[str, Path]:
    """The options of a group and their files; those of experiments may lie in sub-folders."""
    folder = _FOLDER / group
    files = sorted(folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def read_option(group: str | Path, name: str) -> DictConfig:
    """The content of an option's YAML file and of the files that it inherits from.

    Entries of its defaults list for other places in the config are left out.
    """
    own: Any = OmegaConf.load(_FOLDER / group / f"{name}.yaml")
    inherited = []
    for entry in own.pop("defaults", []):
        place, chosen = ("@_here_", entry) if isinstance(entry, str) else next(iter(entry.items()))
        if chosen != "_self_" and place.endswith("@_here_"):
            inherited.append(read_option(Path(group, place.removesuffix("@_here_")), chosen))
    return cast(DictConfig, OmegaConf.merge(*inherited, own))


def name_by_paths(cfg: DictConfig) -> None:
    """Names a local model by its folder and a local text by its file, in all that follows.

    A text without a source is named by its YAML file, which also has the path. A mixture has the
    names of its texts. A model's folder also replaces what its YAML file says of another model:
    source and card.
    """
    for group in ("model", "text"):
        section = cfg.get(group)
        if section and section.path and (section.source or group == "model"):
            section.name = Path(str(section.path)).absolute().name
    if mixed := OmegaConf.select(cfg, "text.mixture"):
        cfg.text.name = "+".join(Path(entry.get("path") or entry["text"]).name for entry in mixed)
    if OmegaConf.select(cfg, "model.path"):
        cfg.model.source = cfg.model.card = None


def comment(file: Path) -> str:
    """The first comment of a YAML file that is not a directive of Hydra."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @")).removeprefix("# ")


def command_of(file: Path) -> str | None:
    """The only command that an option is for; None: any command.

    Its first comment names the command, as in "# search.py -m: every agent at four ratios.".
    """
    found = re.match(r"(\w+)\.py -m: ", comment(file))
    return found and found[1]


def taken_groups(cfg: DictConfig) -> list[str]:
    """The option groups of a config that was composed with Hydra's own part."""
    taken = [*cfg.hydra.runtime.choices, *(name for name in _SEVERAL if name in cfg)]
    own = {name for name in taken if not {"@", "/"} & set(name)}
    return sorted(name for name in own if len(options(name)) > 1)


def option_groups(*, _root_: DictConfig) -> str:
    """Lists the options among which a command's config chooses, each with its first comment."""
    lines = []
    for group in taken_groups(_root_):
        lines += ["", f"{group}:"]
        for option, file in options(group).items():
            if command_of(file) in (None, _root_.hydra.job.config_name):
                lines.append(f"  {option:<18}  {comment(file)}")
    return "\n".join([*lines, ""])


def run_name() -> str | None:
    """The command and its overrides, as in "search agent=ppo ratio=0.4"; None: called by code."""
    if not HydraConfig.initialized():
        return None
    job, given = HydraConfig.get().job, HydraConfig.get().overrides.task
    unnamed = {*job.config.override_dirname.exclude_keys, *SECRET}
    return " ".join([job.name, *(word for word in given if word.split("=")[0] not in unnamed)])


def run_group() -> str | None:
    """The multirun that a job belongs to, as in "search 2026-01-31/12-00-00"; None: called by code.

    For a single run, the command and its overrides without the seed: runs that differ in the seed
    are a group.
    """
    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    if config.mode == RunMode.MULTIRUN:
        return f"{config.job.name} {'/'.join(Path(config.sweep.dir).parts[-2:])}"
    given = [word for word in config.overrides.task if not word.startswith(_UNGROUPED)]
    return " ".join([config.job.name, *given])[:_LONGEST]


def run_tags() -> list[str]:
    """The command, and its options of experiment, hparams_search and debug."""
    if not HydraConfig.initialized():
        return []
    job, choices = HydraConfig.get().job, HydraConfig.get().runtime.choices
    chosen = [choices.get(group) for group in ("experiment", "hparams_search", "debug")]
    return [job.name, *(name for name in chosen if name not in (None, "none"))]


def job_folder(name: str) -> str:
    """The name of a job's folder, which names its overrides; a long one ends in a hash instead.

    Paths would create sub-folders, so "/" becomes "-", and a hash keeps "a/b" apart from "a-b". A
    job without overrides is "default".
    """
    if "/" in name:
        name = f"{name.replace('/', '-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return shortened(name or "default", _LONGEST_FOLDER)


def shortened(name: str, most: int) -> str:
    """The name, or if it has more than `most` bytes, its start and a hash."""
    data = name.encode()
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: most - 17].decode(errors='ignore')}-{digest}"


for _resolver in (option_groups, invocation, job_folder, run_name, run_group, run_tags):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
OmegaConf.register_new_resolver("home", lambda: str(Path.home()), replace=True)
OmegaConf.register_new_resolver("stdlib", lambda: get_path("stdlib"), replace=True)
