"""policy.json: the policy that a search found, and everything needed to apply it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppf.commands import invocation
from ppf.conf import DEFAULT_TEXT, name_by_paths, plain, read_option
from ppf.errors import PPFError
from ppf.labels.context import PruningContext, prepare
from ppf.plan import check_capacity
from ppf.pruning.live import Types
from ppf.pruning.signatures import signatures
from ppf.records.policy import FORMAT, read_policy
from ppf.space import Space
from ppf.text import build_text

__all__ = ["read_policy"]
T = TypeVar("T")


def policy_record(
    context: PruningContext, kept: list[int], numbers: dict[str, Any], *, predictor: str
) -> dict[str, Any]:
    """The contents of a policy.json.

    Args:
        numbers: of the search (ratio asked and achieved, predicted and measured values), merged in.
        predictor: its signature.
    """
    return {
        "format": FORMAT,
        "model": context.config.model.name,
        "space": context.config.space.name,
        "text": context.text.name,
        **described(context, kept),
        "units": context.model.pruner.space.units_by_name,
        **numbers,
        **provenance(context, predictor=predictor),
    }


def provenance(context: PruningContext, **more: str) -> dict[str, Any]:
    """The part of a record from which its model can be prepared again; `more` are signatures."""
    return {"signatures": vars(context.signatures) | more, "config": plain(context.config)}


def described(context: PruningContext, kept: list[int]) -> dict[str, Any]:
    """A policy of the context's space, by the names of sites: units, and formats if it has any."""
    space = context.model.space
    units, types = context.model.decode(kept)
    found: dict[str, Any] = {"kept": by_site(space, units)}
    rounded = types if types and any(type != "f16" for type in types) else None
    return found | ({"types": by_site(space, rounded)} if rounded else {})


def by_site(space: Space, values: Sequence[T]) -> dict[str, T]:
    """One value for each site, by the site's name."""
    return dict(zip((site.name for site in space.sites), values, strict=True))


def types_of(space: Space, record: Mapping[str, Any]) -> Types:
    """The number formats of a policy; None: it has none."""
    types = record.get("types")
    return types and [types[site.name] for site in space.sites]


def refuse_types(record: Mapping[str, Any], what: str) -> None:
    """Raises PPFError if the policy quantises weights, which something does not support."""
    if record.get("types"):
        raise PPFError(
            f"the policy quantises weights, which {what} does not support: write a file for"
            f" llama.cpp with `{invocation('prune', 'policy=POLICY.json', 'export=gguf')}`."
        )


def refuse_recovered(record: Mapping[str, Any], path: str | Path) -> None:
    """Raises PPFError if a policy.json belongs to a recovered model, whose weights it lacks."""
    adapted = (record.get("exported") or {}).get("compensation") == "adapters"
    if adapted or record.get("recovered"):
        raise PPFError(
            f"{path} belongs to a recovered model, and pruning the dense model again would lose its"
            f" weights: give path={Path(path).parent}."
        )


def prepared(cfg: DictConfig, fabric: Fabric, record: Mapping[str, Any]) -> PruningContext:
    """The dense model of a policy.json or agent.json in `cfg.dtype`, ready for pruning.

    Raises:
        PPFError: the model, the text or the dtype has changed, or the machine is too small.
    """
    config = checked_config(record, cfg)
    check_capacity(config, fabric, cfg.dtype)
    return prepare(config, fabric, dtype=cfg.dtype)


def checked_config(record: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """As `policy_config`; refuses a policy that was found for another model or text.

    Raises:
        PPFError: the model, the text or the dtype has changed.
    """
    config = policy_config(record, cfg)
    names, found = signatures(config), record["signatures"]["labels"]
    if names.labels != found:
        raise PPFError(
            f"model={config.model.name}: the model, the text or the dtype has changed since the"
            f" search (signature {names.labels} instead of {found}): search again."
        )
    return config


def calibration_windows(
    record: Mapping[str, Any], cfg: DictConfig, tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, "windows window"]:
    """The calibration part of the policy's text; of the default one if the record is empty."""
    text = policy_config(record, cfg).text if record else read_option("text", DEFAULT_TEXT)
    return build_text(text, cfg.paths.cache).tokens("calibration", tokenizer)


def policy_config(record: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The config for preparing a policy's model: the policy's groups, this command's machine."""
    machine = {name: plain(cfg[name]) for name in ("paths", "bank")}
    config = OmegaConf.create({**record["config"], **machine})
    name_by_paths(config)
    if "dtype" in cfg and "recovery" not in cfg:  # the `dtype` of recover is of its export only
        config.dtype = cfg.dtype
    on_cpu = OmegaConf.select(cfg, "fabric.accelerator") == "cpu"
    if config.model.get("device_map") and (on_cpu or torch.cuda.device_count() < 2):
        config.model.device_map = None  # there are no GPUs to divide the layers over
    return config
