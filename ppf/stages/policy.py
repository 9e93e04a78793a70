"""policy.json: what a search found, and everything needed to apply it again."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppf.errors import PPFError
from ppf.progress import say
from ppf.records import check, read
from ppf.records.policy import FORMAT, ConfigRecord, PolicyRecord
from ppf.space import Space
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import Signatures, plain, recorded, signatures

_REFUSAL = "prune.py, evaluate.py and serve.py will refuse what this search finds"
_REMEDY = "keep to the packaged keys, or give those commands trust_targets"


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
        "model": model_name(context.config.model),
        "space": context.config.space.name,
        "text": context.text.name,
        "kept": by_site(context.space, kept),
        "units": {site.name: site.units for site in context.space.sites},
        **numbers,
        **provenance(context, predictor=predictor),
    }


def model_name(config: DictConfig) -> str:
    """The name of a `model=` config; that of the folder if it has a `path`."""
    return Path(config.path).name if config.path else str(config.name)


def provenance(context: PruningContext, **more: str) -> dict[str, Any]:
    """What a record needs so that its model can be prepared again, or refused.

    Args:
        more: signatures beyond the model's.
    """
    return {"signatures": vars(context.signatures) | more, "config": plain(context.config)}


def by_site(space: Space, kept: list[int]) -> dict[str, int]:
    """Units kept by the site's name."""
    return dict(zip((site.name for site in space.sites), kept, strict=True))


def read_policy(path: str | Path, trusted: Collection[str]) -> dict[str, Any]:
    """Reads a policy.json, which may come from a stranger.

    Args:
        trusted: `trust_targets`: classes of the user's own that it may name.

    Raises:
        PPFError: it cannot be read, or it does not fit its schema.
    """
    return read(path, PolicyRecord, "give the policy.json that search.py wrote", trusted)


def warn_if_unreadable(cfg: DictConfig) -> None:
    """Says before a search what would keep other commands from reading its policy."""
    try:
        check(plain(recorded(cfg)), ConfigRecord, _REFUSAL, _REMEDY)
    except PPFError as error:
        say(f"Warning: {error}")


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
