"""ppf-prune: writes a policy's model, for transformers or llama.cpp."""

from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.evaluation.size import weight_bytes
from ppf.progress import say
from ppf.report.publish import Artifact, log_artifact
from ppf.stages.policy import read_policy
from ppf.stages.prune import prune


def _check(cfg: DictConfig) -> None:
    read_policy(cfg.policy, cfg.trust_targets)


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes into the folder `cfg.out`."""
    policy = read_policy(cfg.policy, cfg.trust_targets)
    path = prune(cfg, fabric, policy)
    size = weight_bytes(path) if path.is_dir() else path.stat().st_size
    used = Artifact([Path(cfg.policy)], f"{policy['model']}-policy", "policy", used=True)
    log_artifact(fabric.loggers, used)
    made = Artifact(
        [path], path.resolve().name, "model", metadata=policy["ratio"], by_reference=True
    )
    log_artifact(fabric.loggers, made)
    say(f"{size / 2**20:.1f} MiB of weights in {path}")
