"""Artefacts found by signature: the hash of the resolved config that determines them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppf.errors import PPFError
from ppf.llm.loading import local_folder

_DIGITS = 12


def signature(*parts: Any) -> str:
    """A short hash of plain values (dicts, lists, numbers, strings)."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain dicts and lists."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what people may read, too."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def model_identity(config: DictConfig, dtype: str) -> dict[str, Any]:
    """What tells a model's weights from others; a local folder counts by its content."""
    if not config.path:
        return {"source": plain(config.source) if config.source else None, "dtype": dtype}
    folder = Path(local_folder(config.path, "model.path"))
    files = sorted(p for p in folder.iterdir() if p.name == "config.json" or p.suffix in _WEIGHTS)
    return {"folder": [(p.name, p.stat().st_size, _digest(p)) for p in files], "dtype": dtype}


def text_identity(config: DictConfig, *parts: str) -> dict[str, Any]:
    """What determines the given parts of a text."""
    text = plain(config)
    path = text.pop("path")
    if path:
        text |= {"name": None, "source": None, "splits": None, "content": _digest(Path(path))}
    return text | {"windows": {part: text["windows"][part] for part in parts}}


def require(cfg: DictConfig, what: str, command: str) -> None:
    """Raises PPFError where `upstream=require` forbids to make a missing artefact."""
    if cfg.upstream == "require":
        raise PPFError(
            f"there are no {what} for this config: run `{command}` first, or set upstream=make."
        )
    if cfg.upstream != "make":
        raise PPFError(f"upstream={cfg.upstream} is unknown: give make or require.")


_WEIGHTS = (".safetensors", ".bin")
_SAMPLE = 1 << 20


def _digest(path: Path) -> str:
    """A hash of a file's first and last MiB, which tells checkpoints apart quickly."""
    if not path.is_file():
        raise PPFError(f"{path} does not exist: give text.path or model.path another value.")
    with path.open("rb") as stream:
        head = stream.read(_SAMPLE)
        stream.seek(max(path.stat().st_size - _SAMPLE, 0))
        return hashlib.sha256(head + stream.read()).hexdigest()[:_DIGITS]
