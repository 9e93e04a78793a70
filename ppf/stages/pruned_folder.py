"""The pruned model that recovery starts from, and the folder that it ends in."""

from pathlib import Path
from typing import Any

from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.artefacts import get_or_make, read_if_whole, signature
from ppf.context import EarlyCheck
from ppf.export.huggingface import HuggingFace
from ppf.export.loading import read_description
from ppf.policy_file import read_policy
from ppf.progress import say
from ppf.stages.prune import compensated


def pruned_folder(
    cfg: DictConfig, fabric: Fabric, record: dict[str, Any], check: EarlyCheck
) -> Path:
    """The folder that prune writes for the policy of a record, in float32; made once.

    Args:
        cfg: of recover.
        check: as for `prepare`.
    """
    refitted = cfg.sequential and {"windows": cfg.refit_windows}
    name = signature("pruned", record["signatures"]["labels"], record["kept"], refitted)
    folder = Path(cfg.paths.artefacts) / "pruned" / name

    def read(path: Path) -> Path:
        read_policy(path / "policy.json", cfg.trust_targets)
        read_description(path)
        return path

    if fabric.broadcast(fabric.is_global_zero and read_if_whole(folder, read)):
        say(f"Reusing the pruned model in {folder}.")
        return folder
    exporter, in_float32 = HuggingFace(), OmegaConf.create({**cfg, "dtype": "float32"})
    context, record = compensated(in_float32, fabric, record, exporter, check=check)

    def make(draft: Path) -> None:
        exporter.write(context.model.pruner, draft, record)

    return get_or_make(folder, read=read, make=make, ranks=fabric)
