"""policy.json: the policy that a search found, and everything needed to apply it again."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from ppf.commands import invocation
from ppf.conf import plain
from ppf.context import PruningContext
from ppf.errors import PPFError
from ppf.llm.loading import model_name
from ppf.progress import say
from ppf.pruning.live import Types
from ppf.pruning.signatures import recorded, signatures
from ppf.records import check, read
from ppf.records.policy import FORMAT, ConfigRecord, PolicyRecord
from ppf.space import Space

T = TypeVar("T")
_REFUSAL = "prune, evaluate and serve will refuse this search's policy"
_REMEDY = "use only classes and keys of PPF's own, or give trust_targets to those commands"


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
        **described(context, kept),
        "units": context.model.pruner.space.units_by_name,
        **numbers,
        **provenance(context, predictor=predictor),
    }


def provenance(context: PruningContext, **more: str) -> dict[str, Any]:
    """The part of a record from which its model can be prepared again, or refused.

    Args:
        more: signatures beyond the model's.
    """
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


def read_policy(path: str | Path, trusted: Collection[str]) -> dict[str, Any]:
    """Reads a policy.json, which may come from a stranger.

    Args:
        trusted: `trust_targets`: classes of the user's own that it may name.

    Raises:
        PPFError: it cannot be read, or it does not fit its schema.
    """
    return read(path, PolicyRecord, "give the policy.json of a search", trusted)


def refuse_types(record: Mapping[str, Any], what: str) -> None:
    """Raises PPFError if the policy quantises weights.

    Args:
        what: what does not support it, as in "recovery training".
    """
    if record.get("types"):
        raise PPFError(
            f"the policy quantises weights, which {what} does not support: write a file for"
            f" llama.cpp with `{invocation('prune', 'policy=POLICY.json', 'export=gguf')}`."
        )


def refuse_recovered(record: Mapping[str, Any], path: str | Path, more: str = "") -> None:
    """Raises PPFError if the policy belongs to a recovered model, whose weights it lacks.

    Args:
        path: of the policy.json.
        more: overrides that the command needs beside `path=`, as in " export=gguf".
    """
    adapted = (record.get("exported") or {}).get("compensation") == "adapters"
    if adapted or record.get("recovered"):
        raise PPFError(
            f"{path} belongs to a recovered model, and pruning the dense model again would lose its"
            f" weights: give path={Path(path).parent}{more}."
        )


def warn_if_unreadable(cfg: DictConfig) -> None:
    """Warns before a search if other commands will refuse to read its policy."""
    try:
        check(plain(recorded(cfg)), ConfigRecord, _REFUSAL, _REMEDY)
    except PPFError as error:
        say(f"Warning: {error}")


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


def policy_config(record: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The config for preparing a policy's model: the policy's groups, this command's machine.

    It has a key `dtype` if that key of the command says in which number format the weights are
    loaded. The key of recover is the format of the export only.
    """
    machine = {name: plain(cfg[name]) for name in ("paths", "bank")}
    config = OmegaConf.create({**record["config"], **machine})
    if "dtype" in cfg and "recovery" not in cfg:
        config.dtype = cfg.dtype
    on_cpu = OmegaConf.select(cfg, "fabric.accelerator") == "cpu"
    if config.model.get("device_map") and (on_cpu or torch.cuda.device_count() < 2):
        config.model.device_map = None  # there are no GPUs to divide the layers over
    return config
