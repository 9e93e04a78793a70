"""Names of the artefacts of one config: hashes of what determines each."""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ppf.artefacts import signature
from ppf.conf import plain
from ppf.digests import with_code
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import model_identity, pinned
from ppf.records.policy import ConfigRecord
from ppf.text.identity import text_identity


@dataclass(frozen=True)
class Signatures:
    """Names of the artefacts of one config."""

    statistics: str
    order: str
    bank: str
    labels: str


def signatures(cfg: DictConfig, device: torch.device | str = "cpu") -> Signatures:
    """Hashes the parts of a config that determine each artefact; no model is loaded.

    Args:
        device: that the model runs on, which determines what `model.dtype=auto` means.
    """
    dtype, cache = str(resolve_dtype(cfg.model.dtype, device)), Path(cfg.paths.cache)
    calibration, labelling = text_identity(cfg, "calibration"), text_identity(cfg, "labelling")
    importance, compensation, space = (
        with_code(cfg[group], cache) for group in ("importance", "compensation", "space")
    )
    for key in ("name", "stock"):  # levels and losses of a policy do not depend on them
        space.pop(key, None)
    if not space.get("query_heads"):
        space.pop("query_heads", None)  # missing in policies of earlier versions
    statistics = signature("statistics", model_identity(cfg.model, cache), dtype, calibration)
    units = ["query heads"] if scores_query_heads(cfg) else []
    order = signature("importance", statistics, importance, *units)
    bank = signature("bank", order, space, compensation)
    labels = signature("labels", bank, labelling, 1, 0)
    return Signatures(statistics, order, bank, labels)


def scores_query_heads(cfg: DictConfig) -> bool:
    """Whether query heads are the units of a config's space."""
    return bool(cfg.space.get("query_heads")) and not cfg.space.get("whole_sites")


def recorded(cfg: DictConfig, device: torch.device | str = "cpu") -> DictConfig:
    """The sections of a config that determine its pruned models, as policy.json records them.

    They name the dtype that `auto` means on this device, and the commit of a hub repository. They
    cannot be changed.
    """
    config = OmegaConf.create({group: plain(cfg[group]) for group in ConfigRecord.model_fields})
    config.text.pop("training", None)  # recovery does not determine a pruned model
    config.model.dtype = dtype_name(resolve_dtype(config.model.dtype, device))
    if config.model.source:
        config.model.source = pinned(plain(config.model.source))
    OmegaConf.set_readonly(config, True)
    return config
