"""The files that commands read and write, for W&B's lineage."""

from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.loggers import Logger
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.policy_file import read_policy
from ppf.records.agent import AGENT, WEIGHTS, agent_folder
from ppf.report.publish import log_artifact


def log_used(cfg: DictConfig, loggers: Sequence[Logger]) -> None:
    """Logs what `policy=`, `search=` or `path=` names, as the command that made it has named it."""
    if cfg.policy:
        model = read_policy(cfg.policy, cfg.trust_targets)["model"]
        log_artifact(loggers, [Path(cfg.policy)], f"{model}-policy", "policy", used=True)
    elif cfg.get("search"):
        config = load_agent(cfg.search, cfg.trust_targets).record["config"]
        name = f"{config['model']['name']}-agent"
        files = [agent_folder(cfg.search) / file for file in (AGENT, WEIGHTS)]
        log_artifact(loggers, files, name, "agent", used=True)
    else:
        for path in folders(cfg):
            log_artifact(loggers, [Path(path)], Path(path).resolve().name, "model", used=True)


def log_made(path: Path, loggers: Sequence[Logger]) -> None:
    """Logs a model that a command has written: a Hugging Face folder or a GGUF file."""
    log_artifact(loggers, [path], path.resolve().name, "model")


def folders(cfg: DictConfig) -> list[str]:
    """The folders of `path=`, which names one or several."""
    paths = cfg.path or []
    return [paths] if isinstance(paths, str) else list(paths)
