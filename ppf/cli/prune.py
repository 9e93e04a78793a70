"""ppf-prune: writes a policy's model as a Hugging Face folder."""

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.evaluation.size import weight_bytes
from ppf.progress import say
from ppf.stages.policy import read_policy
from ppf.stages.prune import prune


@command("prune")
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes `cfg.out`."""
    folder = prune(cfg, fabric, read_policy(cfg.policy))
    say(f"{weight_bytes(folder) / 2**20:.1f} MiB of weights in {folder}")


if __name__ == "__main__":
    main()
