"""prune: a policy becomes a Hugging Face folder with really smaller tensors."""

from pathlib import Path
from typing import Any

from lightning import Fabric
from omegaconf import DictConfig

from ppf.export.huggingface import export_folder
from ppf.stages.policy import check_signature, policy_config
from ppf.stages.prepare import Prepared, prepare


def prune(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Path:
    """Exports the policy's model to `cfg.out`."""
    ready = apply_policy(cfg, fabric, record)
    folder = Path(cfg.out)
    export_folder(ready.pruner, folder, record)
    return folder


def apply_policy(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Prepared:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`."""
    config = policy_config(record, cfg)
    check_signature(record, config)
    ready = prepare(config, fabric, dtype=cfg.dtype)
    ready.pruner.apply(ready.space.policy(record["kept"]))
    return ready
