"""Hydra configs, as a package that `pkg://ppf.conf` finds, and their option groups for `--help`."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ppf.commands import invocation

_FOLDER = Path(__file__).parent
DEFAULT_TEXT = "wikipedia_sample"
OF_SOURCES = ("text.source", "text.splits", "text.training.source", "text.training.splits")
"""Keys and sections that `text.path` replaces."""
GROUPS = {
    "model": "language model to prune",
    "text": "text for calibration, labels and evaluation",
    "space": "which parts of the model are pruned, and in which units",
    "importance": "order in which the units of a site are removed",
    "compensation": "correction of the weights that stay",
    "sampler": "policies to label",
    "predictor": "predicts the perplexity of a policy",
    "predictor/encoder": "input of the predictor",
    "predictor/optimizer": "optimizer of the predictor",
    "mode": "the best policy for one ratio, or an agent for every ratio",
    "agent": "searches for the best policy",
    "rules": "allocation rules that a search measures too; not mode=dynamic",
    "budget": "cost that the ratio is a share of",
    "loss": "losses of recovery; several, which are added: loss=[kl,hidden]",
    "tune": "weights that recovery trains; one after another: tune=[blockwise,lora]",
    "export": "format of the pruned model",
    "fabric": "processes and devices",
    "trainer": "arguments of Lightning's Trainer, which trains the predictor",
    "logger": "experiment loggers; several: logger=[wandb,csv]",
    "experiment": "settings of a study, most of them for a multirun (-m)",
    "hparams_search": "search of hyper-parameters with Optuna (-m)",
    "hydra": "folders of runs",
    "debug": "small runs that show what goes wrong",
}
"""Option group → its purpose."""
_SHARING = ("collect", "train", "search", "recover")  # several processes share their work
_PROCESSES = ("ddp", "multi_node", "slurm")  # options of fabric with several processes
_SEVERAL = ("logger", "loss", "tune")  # lists of their options are not among Hydra's choices
SECRET = ("api_key",)
"""Keys of the config that no logger gets."""
_UNGROUPED = ("seed=", "paths.", "traceback=", *(f"{key}=" for key in SECRET))
_LONGEST = 128  # characters of a group's name in W&B
_LONGEST_FOLDER = 200  # bytes of a job's name; file systems allow 255
_TAGGED = ("experiment", "hparams_search", "debug")


@contextmanager
def without_others() -> Iterator[None]:
    """Sets aside the state of another Hydra program, which may call PPF's functions."""
    program, config = GlobalHydra.instance(), HydraConfig.instance()
    before = program.hydra, config.cfg
    program.hydra = config.cfg = None
    try:
        yield
    finally:
        program.hydra, config.cfg = before


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


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain dicts and lists."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def option_groups(*, _root_: DictConfig) -> str:
    """Lists the option groups of the composed config that offer a choice, and their options.

    The first comment in an option's file describes the option. Options for other commands are left
    out.
    """
    command, taken = _root_.hydra.job.config_name, taken_groups(_root_)
    refused = set() if command in _SHARING else {("fabric", name) for name in _PROCESSES}
    if "experiment" not in taken:
        refused.add(("hydra", "experiment"))
    found = dict[str, dict[str, str]]()
    for group in taken:
        known = {option: _comment(file) for option, file in options(group).items()}
        found[group] = {
            option: text
            for option, text in known.items()
            if _command(text) in (None, command) and (group, option) not in refused
        }
    return "\n".join(_group(group, known) for group, known in found.items() if len(known) > 1)


def command_of(group: str, option: str) -> str | None:
    """The only command that an experiment or a search of hyper-parameters is for, if it names one.

    Its first comment names the command, as in "# search.py -m: every agent at four ratios.".
    """
    file = options(group).get(option)
    return _command(_comment(file)) if file else None


def taken_groups(cfg: DictConfig) -> list[str]:
    """The option groups of a config that was composed with Hydra's own part."""
    several = [name for name in _SEVERAL if name in cfg]
    return [name for name in GROUPS if name in (*cfg.hydra.runtime.choices, *several)]


def run_name() -> str | None:
    """The command and its overrides, as in "search agent=ppo ratio=0.4"; None: called by code."""
    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    unnamed = {*config.job.config.override_dirname.exclude_keys, *SECRET}
    given = [word for word in config.overrides.task if word.partition("=")[0] not in unnamed]
    return " ".join([config.job.name, *given])


def run_group() -> str | None:
    """The multirun that a job belongs to, as in "search 2026-01-31/12-00-00".

    For a single run, the command and its overrides without the seed: runs that differ in the seed
    are a group. None: called by code.
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
    config = HydraConfig.get()
    chosen = [config.runtime.choices.get(group) for group in _TAGGED]
    return [config.job.name, *(name for name in chosen if name not in (None, "none"))]


def home() -> str:
    """The user's home folder, from the password database if `HOME` is not set."""
    return Path("~").expanduser().as_posix()


def job_folder(name: str) -> str:
    """The name of a job's folder, which names its overrides; a long one ends in a hash instead.

    Paths would create sub-folders, so "/" becomes "-", and a hash keeps "a/b" apart from "a-b". A
    job without overrides is "default".
    """
    plain = name.replace("/", "-") or "default"
    if "/" in name:
        plain = f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return shortened(plain, _LONGEST_FOLDER)


def shortened(name: str, most: int) -> str:
    """The name, or if it has more than `most` bytes, its start and a hash."""
    data = name.encode()
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: most - 17].decode(errors='ignore')}-{digest}"


def options(group: str) -> dict[str, Path]:
    """The options of a group and their files; those of experiments may lie in sub-folders."""
    folder = _FOLDER / group
    files = sorted(folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _group(name: str, known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {option:<{width}}  {text}" for option, text in known.items()]
    return "\n".join([f"{name}: {GROUPS[name]}", *lines, ""])


def _comment(file: Path) -> str:
    """The first comment that is not a directive of Hydra."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @")).removeprefix("# ")


def _command(comment: str) -> str | None:
    found = re.match(r"(\w+)\.py -m: ", comment)
    return found and found[1]


OmegaConf.register_new_resolver("home", home, replace=True)
OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)
OmegaConf.register_new_resolver("invocation", invocation, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("run_group", run_group, replace=True)
