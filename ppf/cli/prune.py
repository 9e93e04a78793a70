"""ppf-prune: writes a policy's model, for transformers or llama.cpp."""

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.evaluation.size import weight_bytes
from ppf.progress import say
from ppf.stages.policy import read_policy
from ppf.stages.prune import prune


def _check(cfg: DictConfig) -> None:
    read_policy(cfg.policy, cfg.trust_targets)


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes into the folder `cfg.out`."""
    path = prune(cfg, fabric, read_policy(cfg.policy, cfg.trust_targets))
    size = weight_bytes(path) if path.is_dir() else path.stat().st_size
    say(f"{size / 2**20:.1f} MiB of weights in {path}")
