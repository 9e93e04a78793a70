"""The files that commands read and write, for W&B's lineage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppf.agents.ratio_agent import load_agent
from ppf.policy_file import model_name, read_policy
from ppf.records.agent import AGENT, WEIGHTS, agent_folder
from ppf.report.publish import Artifact


def used(cfg: DictConfig) -> list[Artifact]:
    """The artifact of `policy=`, `search=` or `path=`, with the name that its command gave it."""
    if cfg.policy:
        model = read_policy(cfg.policy, cfg.trust_targets)["model"]
        return [Artifact([Path(cfg.policy)], f"{model}-policy", "policy", used=True)]
    if cfg.get("search"):
        config = load_agent(cfg.search, cfg.trust_targets).record["config"]
        model = model_name(OmegaConf.create(config["model"]))
        files = [agent_folder(cfg.search) / name for name in (AGENT, WEIGHTS)]
        return [Artifact(files, f"{model}-agent", "agent", used=True)]
    return [replace(made(Path(path)), used=True) for path in folders(cfg)]


def folders(cfg: DictConfig) -> list[str]:
    """The folders of `path=`, which names one or several."""
    paths = cfg.path or []
    return [paths] if isinstance(paths, str) else list(paths)


def made(path: Path, metadata: Mapping[str, Any] | None = None) -> Artifact:
    """A model that a command writes: a Hugging Face folder or a GGUF file."""
    name = path.resolve().name
    return Artifact([path], name, "model", metadata=metadata or {}, by_reference=True)
