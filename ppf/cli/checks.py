"""Checks of a composed config before any work starts: every key, every value, every folder."""

import inspect
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from ppf.arguments import TARGET, Component, check_component, check_value, components, unknown_key
from ppf.artefacts import writing
from ppf.cli.explain import refusal
from ppf.errors import PPFError
from ppf.ranges import Count, Natural, NonNegative, Positive, Ratio, Ratios, Seed, Several
from ppf.records.policy import ModelRecord, TextRecord
from ppf.records.values import FileFormat, Record

_FOLDERS = ("paths.run", "paths.artefacts", "paths.cache", "out")
TrainingPart = Literal["training", "validation", "test"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class PlainKeys:
    """The keys of all commands that are no sections; see their comments in `ppf/conf`."""

    seed: Seed
    traceback: bool
    trust_targets: list[str]
    plan: bool
    test_policies: Natural
    mode: Literal["static", "dynamic", "chain"]
    ratio: Ratio | None
    ratios: Ratios
    target: str | None
    recover: bool
    names: list[str] | None
    prompts: list[str]
    round_to: FileFormat | None
    report_test: bool
    policy: str | None
    path: str | list[str] | None
    search: str | None
    text: None
    out: str
    sequential: bool
    refit_windows: Count | None
    dtype: Dtype | None
    batch: Count
    baselines: bool
    window: Several | None
    latency: bool
    tasks: list[str]
    num_fewshot: Natural
    limit: Count | None
    push_to_hub: str | None
    push_to_hub_dry_run: bool
    chat_template: str | None
    host: str
    port: Annotated[int, Field(ge=0, lt=2**16)]
    api_key: str | None


class ModelSection(ModelRecord):
    """`model/*.yaml`; its source may be any class."""

    source: Component | None


class TrainingTextSection(Record):
    """`training` of `text/*.yaml`."""

    splits: dict[str, dict[TrainingPart, Positive]]
    windows: dict[TrainingPart, Count | None]
    source: Component | None
    more: dict[Literal["path", "column"], str | None]


class TextSection(TextRecord):
    """`text/*.yaml`; its source may be any class."""

    source: Component | None
    training: TrainingTextSection


class LabelsSection(Record):
    """`labels` of `base.yaml`."""

    count: Count | None
    batch: Count


class SectionKeys:
    """The keys of all commands whose sections name no `_target_`.

    A section that names one is checked against the signature of that instead.
    """

    paths: dict[str, str]
    bank: dict[str, NonNegative]
    logger: dict[str, Component]
    rules: dict[str, Component]
    loss: Annotated[dict[str, Component], Field(min_length=1)]
    tune: Annotated[dict[str, Component], Field(min_length=1, max_length=1)]
    model: ModelSection
    text: TextSection
    labels: LabelsSection
    budget: dict[str, str | Component]


def check(cfg: DictConfig) -> None:
    """Checks what can be checked without loading a model or a text.

    Raises:
        PPFError: a key is unknown, a value is of the wrong type or out of its range, a class
            refuses its arguments, or a folder cannot be written.
    """
    given = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    check_values(given)
    for keys, _ in components(given):
        if keys != ("trainer",):
            check_construction(OmegaConf.select(cfg, ".".join(keys)))
    for key in _FOLDERS:
        if folder := OmegaConf.select(cfg, key):
            check_folder(Path(folder))


def check_values(given: Any) -> None:
    """Checks the keys and values of a plain config.

    Raises:
        PPFError: the first key or value that is wrong.
    """
    found = list(components(given))
    named = {keys[0] for keys, _ in found if len(keys) == 1}
    for key, value in given.items():
        schema = SectionKeys if isinstance(value, dict) else PlainKeys
        known = get_type_hints(schema, include_extras=True)
        if key in known and key not in named:
            check_value(known[key], (key,), value)
        elif key not in named:
            raise PPFError(unknown_key((key,), given.keys() - {key}))
    for keys, component in found:
        check_component(keys, component)


def check_construction(component: DictConfig) -> None:
    """Constructs the component once, if the config has all of its arguments.

    Raises:
        PPFError: its constructor refuses them.
    """
    names = [str(name) for name in component if not str(name).startswith("_")]
    try:
        inspect.signature(resolve_name(component[TARGET])).bind(**dict.fromkeys(names))
    except TypeError:  # the rest comes later, such as a model
        return
    try:
        instantiate(component)
    except InstantiationException as error:
        raise PPFError(refusal(error)) from error


def check_folder(folder: Path) -> None:
    """Makes the folder and writes one byte in it.

    Raises:
        PPFError: that fails.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")
