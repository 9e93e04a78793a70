"""The parts of a config that determine each artefact. All other changes leave it valid."""

import inspect
import sys
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ppf.artefacts import digest, signature
from ppf.errors import PPFError
from ppf.llm.loading import dtype_name, local_folder, pinned, resolve_dtype
from ppf.progress import say
from ppf.records.policy import ConfigRecord
from ppf.text.parts import PartName, local_splits, spans

_INSTALLED = {"site-packages", "dist-packages"}
_PLACE = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "log_every_n_steps",
    "num_sanity_val_steps",
)  # arguments of Lightning's Trainer that do not change what is trained
MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt")
"""Suffixes of a model folder's files that determine the model."""


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
    dtype = str(resolve_dtype(cfg.model.dtype, device))
    cache = Path(cfg.paths.cache)
    calibration, labelling = text_identity(cfg, "calibration"), text_identity(cfg, "labelling")
    statistics = signature("statistics", model_identity(cfg), dtype, calibration)
    order = signature("importance", statistics, with_code(plain(cfg.importance), cache))
    compensation = with_code(plain(cfg.compensation), cache)
    own = {key: value for key, value in plain(cfg.space).items() if key != "name"}
    space = with_code(own, cache)
    bank = signature("bank", order, space, compensation)
    labels = signature("labels", bank, labelling, cfg.labels.context, cfg.labels.kl_top_k)
    return Signatures(statistics, order, bank, labels)


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


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain dicts and lists."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def with_code(config: dict[str, Any], cache: Path) -> dict[str, Any]:
    """A copy of a plain config, in which each class of the user's own has its code's digest.

    A part of the config whose `_target_` is such a class gets the digest of the source file under
    the key `_code_`.

    Args:
        cache: folder that remembers digests of files.
    """
    found = {key: _with_code(value, cache) for key, value in config.items()}
    if file := _own_file(config.get("_target_")):
        found["_code_"] = digest(file, cache)
    return found


def _with_code(value: Any, cache: Path) -> Any:
    if isinstance(value, list):
        return [_with_code(entry, cache) for entry in value]
    return with_code(value, cache) if isinstance(value, dict) else value


def _own_file(target: str | None) -> Path | None:
    """The source file of a class that is neither PPF's nor that of an installed package.

    Raises:
        PPFError: it has none, so nothing would tell when its code changes.
    """
    if target is None or target.startswith("ppf."):
        return None
    try:
        module = sys.modules[_module_of(target)]
    except (ImportError, AttributeError, ValueError, KeyError):  # reported where it is used
        return None
    if module.__name__ in sys.builtin_module_names:
        return None
    file = Path(getattr(module, "__file__", None) or "")
    if not file.is_file():
        raise PPFError(
            f"{target} has no source file, so artefacts of its earlier code could not be told"
            " apart: define the class in a module, not in a notebook."
        )
    return file if not _INSTALLED & {*file.parts} else None


def _module_of(target: str) -> str:
    """The name of the module that defines a class or function, or that holds another object."""
    found = resolve_name(target)
    if inspect.isclass(found) or inspect.isroutine(found):
        return found.__module__
    name = target.replace(":", ".")
    while name not in sys.modules:
        name, _, _ = name.rpartition(".")
    return name


def trainer_identity(trainer: DictConfig) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that determine what is trained."""
    return {key: value for key, value in plain(trainer).items() if key not in _PLACE}


def _model_folder(path: str) -> str:
    try:
        return local_folder(path, "model.path")
    except PPFError as error:
        raise PPFError(
            f"{error} If a policy.json or agent.json names this path, change it in that file."
        ) from error


def model_identity(cfg: DictConfig) -> dict[str, Any]:
    """What identifies a model: the contents of a local folder's files, or a repository's commit.

    Files in subfolders do not count, since transformers does not read them.
    """
    model, cache = cfg.model, Path(cfg.paths.cache)
    if model.path:
        folder = Path(_model_folder(model.path))
        return {"files": contents(folder, cache, MODEL_FILES, subfolders=False)}
    return {"source": _source(pinned(plain(model.source)), cache) if model.source else None}


def text_identity(cfg: DictConfig, part: PartName) -> dict[str, Any]:
    """What determines the windows of one part of a text; the other parts do not count."""
    text = plain(cfg.text)
    text.pop("training", None)  # a text of its own: see `ppf.llm.text.training_text`
    source = _documents(text, Path(cfg.paths.cache))
    path, splits, windows = text.pop("path"), text.pop("splits"), text.pop("windows")[part]
    del text["name"]
    if path:
        splits = local_splits(splits)
    else:
        del text["column"]  # of files only
    target = source.get("_target_", "")
    if target != "ppf.text.corpora.wikipedia_sample":  # which has no duplicates
        text["duplicates"] = "removed"
    if target.startswith("ppf.text.corpora."):  # the names of artefacts have its earlier place
        source["_target_"] = target.replace("ppf.text.", "ppf.llm.")
    return text | {"source": source, "documents": spans(splits, part), "windows": windows}


def _documents(text: dict[str, Any], cache: Path) -> dict[str, Any]:
    """What determines the documents of all parts of a plain `text=` config."""
    if text["path"]:
        return file_identity(text["path"], "text.path", cache)
    return _source(text["source"], cache)


def documents_identity(cfg: DictConfig, part: PartName) -> dict[str, Any]:
    """What determines the documents of one part of a text, but not its windows."""
    windows = ("window", "windows", "bos")
    return {k: value for k, value in text_identity(cfg, part).items() if k not in windows}


def warn_of_shared_documents(
    cfg: DictConfig, found_with: DictConfig, policy: str = "the policy"
) -> None:
    """Warns if a policy was found with documents of the test part of `cfg.text`.

    This is so if another seed or other splits divide the same source.

    Args:
        found_with: the config that the policy was found with.
        policy: what the warning calls it.
    """
    own, other, cache = plain(cfg.text), plain(found_with.text), Path(cfg.paths.cache)
    try:
        if _documents(own, cache) != _documents(other, cache):
            return
    except PPFError:  # a missing file is reported where it is read
        return
    tested, *used = (
        spans(local_splits(text["splits"]) if text["path"] else text["splits"], part)
        for text, part in ((own, "test"), (other, "calibration"), (other, "labelling"))
    )
    pairs = ((tested[s], part[s]) for part in used for s in part.keys() & tested.keys())
    if any(own["seed"] != other["seed"] or x[0] < y[1] and y[0] < x[1] for x, y in pairs):
        say(
            f"Warning: {policy} was found with documents that are now in the test part, so its"
            " perplexity may be too low. Leave text.seed and text.splits as in the search."
        )


def file_digest(path: str, key: str, cache: Path) -> str:
    """Digest of a file that the config names under `key`.

    Raises:
        PPFError: there is no such file.
    """
    if not Path(path).is_file():
        raise PPFError(
            f"{key}={path} does not exist: give {key} another value. If a policy.json or agent.json"
            " names this path, change it in that file."
        )
    return digest(Path(path), cache)


def file_identity(path: str, key: str, cache: Path) -> dict[str, Any]:
    """What determines the documents of a local file: its content, and its type unless .jsonl.

    Args, Raises: as for `file_digest`.
    """
    suffix = Path(path).suffix
    type = {} if suffix == ".jsonl" else {"type": suffix}
    return {"content": file_digest(path, key, cache), **type}


def missing(what: str, command: str) -> PPFError:
    """The error of a stage that lacks an artefact and must not make it (`upstream=require`)."""
    return PPFError(
        f"this config has no {what} yet: run `{command}` with the same model, text and other"
        " overrides first, or set upstream=make."
    )


def _source(source: dict[str, Any], cache: Path) -> dict[str, Any]:
    """A source's config without a revision of null; local files and folders count by content."""
    found = {
        key: contents(Path(value), cache)
        if key in ("path", "repository") and Path(value).is_dir()
        else value
        for key, value in source.items()
        if key != "revision" or value
    }
    if found.get("data_files"):
        found["data_files"] = named_files(found["data_files"], cache)
    return with_code(found, cache)


def named_files(value: Any, cache: Path) -> Any:
    """The value of `data_files` with digests of the local files that it names or matches."""
    if isinstance(value, dict):
        return {key: named_files(entry, cache) for key, entry in value.items()}
    if isinstance(value, list):
        return [named_files(entry, cache) for entry in value]
    file = Path(str(value))
    if file.is_file():
        return [file.name, digest(file, cache)]
    matches = map(Path, sorted(glob(str(value), recursive=True)))  # as `datasets` reads patterns
    return [[match.name, digest(match, cache)] for match in matches if match.is_file()] or value


def contents(
    folder: Path, cache: Path, suffixes: tuple[str, ...] = (), *, subfolders: bool = True
) -> list[tuple[str, str]]:
    """Names and digests of a folder's files.

    Args:
        suffixes: of the files that count; empty: all files.
        subfolders: whether files in subfolders count.
    """
    files = sorted(
        path
        for path in (folder.rglob if subfolders else folder.glob)("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    )
    return [(str(path.relative_to(folder)), digest(path, cache)) for path in files]
