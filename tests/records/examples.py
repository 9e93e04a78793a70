"""Good records of the tiny model, which tests then spoil."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ppf import conf
from ppf.records.policy import ConfigRecord
from tests.composing import command_config

CONF = Path(__file__).parents[2] / "ppf" / "conf"
Place = tuple[str | int, ...]
UNITS = {f"{layer}.{kind}": n for layer in range(4) for kind, n in (("attention", 4), ("mlp", 3))}
SIGNATURES = dict.fromkeys(("statistics", "order", "bank", "labels"), "0123456789ab")


@cache
def _tiny() -> Any:
    cfg = command_config("search", ["model=tiny"])
    groups = OmegaConf.masked_copy(cfg, list(ConfigRecord.model_fields))
    plain: Any = OmegaConf.to_container(groups, resolve=True)
    del plain["text"]["training"]
    return plain


def config(**changes: Any) -> dict[str, Any]:
    """The groups of a search's config that its records carry.

    Args:
        changes: dotted place → value.
    """
    made = copy.deepcopy(_tiny())
    for place, value in changes.items():
        made = spoilt(made, tuple(place.split(".")), value)
    return made


def option(group: str, name: str) -> Any:
    """The content of a packaged YAML file."""
    content: Any = OmegaConf.to_container(conf.read_option(group, name))
    content.pop("training", None)  # of a text; records leave it out
    if str(content.get("path")).startswith("${stdlib:}"):  # which policies have resolved
        content["path"] = content["path"].replace("${stdlib:}", "/usr/lib")
    return content


def numbers(kept: dict[str, int]) -> dict[str, Any]:
    """What a search tells of its policy and of the uniform one, which are the same here."""
    measured = {"nll": 5.25, "perplexity": 190.5, "part": "labelling"}
    return {
        "ratio": {"asked": 0.3, "achieved": 0.31, "of_all_parameters": 0.2},
        "budget": {"name": "params", "saved": 0.31},
        "predicted": {"nll": 5.0, "perplexity": 148.4, "std": 0.1, "interval_95": [122.0, 180.5]},
        "measured": measured,
        "uniform": {"kept": dict(kept), "measured": dict(measured)},
    }


def policy(kept: dict[str, int] | None = None, **changes: Any) -> dict[str, Any]:
    """What a search writes as policy.json."""
    kept = kept or dict.fromkeys(UNITS, 2)
    return {
        "format": 1,
        "model": "tiny",
        "space": "width",
        "text": "wikipedia_sample",
        "kept": dict(kept),
        "units": UNITS,
        **numbers(kept),
        "signatures": SIGNATURES | {"predictor": "ba9876543210"},
        "config": config(),
    } | changes


def agent(**changes: Any) -> dict[str, Any]:
    """What a dynamic search writes as agent.json."""
    sites = [
        {"layer": layer, "kind": kind, "units": n, "atoms_per_unit": 1, "params": 64}
        for layer in range(4)
        for kind, n in (("attention", 4), ("mlp", 3))
    ]
    return {
        "format": 1,
        "signatures": SIGNATURES,
        "config": config(),
        "space": {"sites": sites, "name": "width", "budget": "params", "prices": None},
        "units": UNITS,
        "ratios": [0.0, 0.6],
        "weights": "agent.safetensors",
    } | changes


def places(node: Any, at: Place = ()) -> Iterator[Place]:
    """Every place of a record, below its top."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def spoilt(record: Any, place: Place, value: Any) -> Any:
    """The record with another value at a place."""
    record = copy.deepcopy(record)
    node = record
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return record
