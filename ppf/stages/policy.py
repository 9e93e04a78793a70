"""policy.json: what a search found, and everything needed to apply it again."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppf.errors import PPFError
from ppf.space import Space
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import Signatures, plain, signatures

FORMAT = 1
_CONFIG_GROUPS = ("model", "text", "space", "importance", "compensation", "labels")


def policy_record(
    context: PruningContext, kept: list[int], numbers: dict[str, Any], *, predictor: str
) -> dict[str, Any]:
    """The contents of a policy.json.

    Args:
        numbers: of the search (ratio asked and achieved, predicted and measured values), merged in.
        predictor: its signature.
    """
    cfg = context.cfg
    return {
        "format": FORMAT,
        "model": cfg.model.name if not cfg.model.path else Path(cfg.model.path).name,
        "space": cfg.space.name,
        "text": context.text.name,
        "kept": by_site(context.space, kept),
        "units": {site.name: site.units for site in context.space.sites},
        **numbers,
        **provenance(context, predictor=predictor),
    }


def provenance(context: PruningContext, **more: str) -> dict[str, Any]:
    """What a record needs so that its model can be prepared again, or refused.

    Args:
        more: signatures beyond the model's.
    """
    return {
        "signatures": vars(context.signatures) | more,
        "config": {group: plain(context.cfg[group]) for group in _CONFIG_GROUPS},
    }


def by_site(space: Space, kept: list[int]) -> dict[str, int]:
    """Units kept by the site's name."""
    return dict(zip((site.name for site in space.sites), kept, strict=True))


def read_policy(path: str) -> dict[str, Any]:
    """Reads a policy.json.

    Raises:
        PPFError: there is none, or it is no policy of this format.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PPFError(
            f"policy={path} cannot be read: give the policy.json that search.py wrote."
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PPFError(
            f"policy={path} is no policy of format {FORMAT}: give one that search.py wrote."
        )
    return record


def policy_config(record: dict[str, Any], cfg: DictConfig) -> DictConfig:
    """The config to prepare a policy's model with: its own groups, this command's machine."""
    machine = {name: plain(cfg[name]) for name in ("paths", "bank")}
    return OmegaConf.create({**record["config"], **machine})


def check_signature(record: dict[str, Any], config: DictConfig) -> Signatures:
    """Raises PPFError where the model or text is no longer what the policy was found for."""
    names = signatures(config)
    if names.labels != record["signatures"]["labels"]:
        raise PPFError(
            f"the policy was found for another model, text or dtype than {config.model.name}"
            f" here (signature {record['signatures']['labels']}, not {names.labels}): search again."
        )
    return names
