"""The files that commands read and write, for W&B's lineage."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from ppf.agents.agent_file import AGENT, WEIGHTS, agent_folder
from ppf.agents.ratio_agent import load_agent
from ppf.conf import shortened
from ppf.policy_file import read_policy
from ppf.predictor.base import Trained, needs_labels

_LONGEST_NAME = 128  # characters of the name of a W&B artifact


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


def log_search(cfg: DictConfig, folder: Path, trained: Trained, loggers: Sequence[Logger]) -> None:
    """Logs the stored predictor that a search has used, and the policy or agent in its folder."""
    model, kind = cfg.model.name, "policy" if cfg.mode == "static" else "agent"
    if needs_labels(trained.predictor):  # others are not stored
        log_artifact(loggers, [trained.folder], f"{model}-predictor", "predictor", used=True)
    log_artifact(loggers, sorted(folder.glob(f"{kind}.*")), f"{model}-{kind}", kind)


def folders(cfg: DictConfig) -> list[str]:
    """The folders of `path=`, which names one or several."""
    paths = cfg.path or []
    return [paths] if isinstance(paths, str) else list(paths)


@rank_zero_only
def log_artifact(
    loggers: Sequence[Logger], paths: Sequence[Path], name: str, kind: str, *, used: bool = False
) -> None:
    """Logs files as a versioned artifact of every W&B run.

    W&B joins runs that make and use the same files to a lineage. It identifies files by name and
    content, so this also works for offline runs. Of a model, only place and checksums are logged.

    Args:
        paths: files and folders. Offline runs upload them at `wandb sync`: they must stay in their
            places.
        name: as in "tiny-policy"; artifacts of the same name are versions of each other.
        kind: "policy", "predictor", "agent" or "model".
        used: True: the run reads the files; False: it makes them.
    """
    allowed = shortened(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII), _LONGEST_NAME)
    runs = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    for run in (run for run in runs if not run.disabled):
        import wandb

        made = wandb.Artifact(allowed, kind)
        for path in map(Path.resolve, paths):
            if kind == "model":
                made.add_reference(path.as_uri())
            elif path.is_dir():
                made.add_dir(str(path), policy="immutable", skip_cache=True)
            else:
                made.add_file(str(path), policy="immutable", skip_cache=True)
        # `use_artifact` refuses offline runs, though their files can say that they use an artifact.
        run._log_artifact(made, use_after_commit=used)
