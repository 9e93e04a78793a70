"""prune: a policy becomes a model on disk with really smaller tensors."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.stages.policy import check_signature, kept_units, policy_config
from ppf.stages.prepare import Prepared, prepare


def prune(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Path:
    """Exports the policy's model to the folder `cfg.out`; returns what `cfg.export` wrote."""
    ready = apply_policy(cfg, fabric, record)
    return instantiate(cfg.export, _partial_=True)(ready.pruner, Path(cfg.out), record)


def apply_policy(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Prepared:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`."""
    config = policy_config(record, cfg)
    check_signature(record, config)
    ready = prepare(config, fabric, dtype=cfg.dtype)
    ready.pruner.apply(kept_units(record, ready.space))
    return ready
