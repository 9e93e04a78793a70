"""What in a config determines each artefact; everything else leaves it valid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppf.artefacts import digest, signature
from ppf.errors import PPFError
from ppf.llm.loading import local_folder, resolve_dtype
from ppf.llm.text import local_splits, spans

_MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt")


@dataclass(frozen=True)
class Signatures:
    """Names of the artefacts of one config."""

    statistics: str
    order: str
    bank: str
    labels: str


def signatures(cfg: DictConfig) -> Signatures:
    """Hashes the parts of a config that determine each artefact; no model is loaded."""
    dtype = str(resolve_dtype(cfg.model.dtype))
    calibration, labelling = text_identity(cfg, "calibration"), text_identity(cfg, "labelling")
    statistics = signature("statistics", model_identity(cfg), dtype, calibration)
    order = signature("importance", statistics, plain(cfg.importance))
    bank = signature("bank", order, plain(cfg.space), plain(cfg.compensation))
    labels = signature("labels", bank, labelling, cfg.labels.context, cfg.labels.kl_top_k)
    return Signatures(statistics, order, bank, labels)


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain dicts and lists."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def model_identity(cfg: DictConfig) -> dict[str, Any]:
    """What tells one model from another; a local folder counts by the content of its files."""
    model, cache = cfg.model, Path(cfg.paths.cache)
    if model.path:
        folder = Path(local_folder(model.path, "model.path"))
        return {"files": _contents(folder, cache, _MODEL_FILES)}
    return {"source": _source(plain(model.source), cache) if model.source else None}


def text_identity(cfg: DictConfig, part: str) -> dict[str, Any]:
    """What determines the windows of one part of a text; the other parts do not count."""
    text = plain(cfg.text)
    path, source, splits = text.pop("path"), text.pop("source"), text.pop("splits")
    windows = text.pop("windows")[part]
    del text["name"]
    if path:
        splits, source = local_splits(), {"content": file_digest(cfg, "text.path")}
    else:
        source = _source(source, Path(cfg.paths.cache))
    return text | {"source": source, "documents": spans(splits, part), "windows": windows}


def file_digest(cfg: DictConfig, key: str) -> str:
    """Digest of the file that a key of the config names.

    Raises:
        PPFError: there is no such file.
    """
    path = Path(OmegaConf.select(cfg, key))
    if not path.is_file():
        raise PPFError(f"{key}={path} does not exist: give {key} another value.")
    return digest(path, Path(cfg.paths.cache))


def require(cfg: DictConfig, what: str, command: str) -> None:
    """Raises PPFError if `upstream=require` forbids to make a missing artefact."""
    if cfg.upstream == "require":
        raise PPFError(
            f"there are no {what} for this config: run `{command}` first, or set upstream=make."
        )
    if cfg.upstream != "make":
        raise PPFError(f"upstream={cfg.upstream} is unknown: give make or require.")


def _source(source: dict[str, Any], cache: Path) -> dict[str, Any]:
    """A source's config; values that are local folders count by their content."""
    return {
        key: _contents(Path(value), cache)
        if key in ("path", "repository") and Path(value).is_dir()
        else value
        for key, value in source.items()
    }


def _contents(folder: Path, cache: Path, suffixes: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Names and digests of a folder's files, those of its subfolders included.

    Args:
        suffixes: of the files that count; empty: all files.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    )
    return [(str(path.relative_to(folder)), digest(path, cache)) for path in files]
