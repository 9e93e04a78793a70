"""The metadata at the top of a model card: what is known of the dense model and the text."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from transformers import PreTrainedModel

from ppf.llm.sources import cached_file

_COPIED = ("license", "license_name", "license_link", "language", "datasets")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def front_matter(model: PreTrainedModel, config: Mapping[str, Any], library: str) -> str:
    """The metadata in YAML, without the lines `---` around it.

    Licence, language and data sets come from the dense model's own card, which is the README.md of
    a local folder. Unknown facts are left out.

    Args:
        model: the model; its name is the folder or the hub id that it was loaded from.
        config: the sections of policy.json's config; `model.card` overrides the card.
        library: that loads the model, as the Hub names it.
    """
    given, text = config.get("model", {}), config.get("text", {})
    revision = (given.get("source") or {}).get("revision")
    own = _own_card(str(model.name_or_path), revision)
    own |= {key: value for key, value in _facts(given).items() if value}
    known = {key: own[key] for key in _COPIED if _is_names(own.get(key))}
    named = known.get("datasets", [])
    named = [named] if isinstance(named, str) else named
    known["datasets"] = list(dict.fromkeys([*named, *_datasets(text)])) or None
    found = ModelCardData(
        base_model=own.get("base_model"),
        library_name=library,
        pipeline_tag="text-generation",
        tags=["pruned", "structured-pruning"],
        metrics=["perplexity"],
        **known,
    )
    return found.to_yaml()


def _is_names(value: Any) -> bool:
    """Whether a value of a card is a text or a list of texts; any other value is left out."""
    texts = [value] if isinstance(value, str) else value
    return bool(texts) and isinstance(texts, list) and all(isinstance(x, str) for x in texts)


def _own_card(source: str, revision: str | None) -> dict[str, Any]:
    """The metadata of the dense model's card, and the model's own hub id as `base_model`."""
    folder = Path(source)
    file = folder / "README.md" if folder.is_dir() else cached_file(source, "README.md", revision)
    found: dict[str, Any] = {}
    if file and file.is_file():
        try:
            found = metadata_load(file) or {}
        except Exception:  # any text may stand at the top of a README
            found = {}
    if not folder.is_dir():
        found["base_model"] = source
    elif not (folder / "policy.json").is_file():  # unlike the cards that PPF wrote
        found["base_model"] = None
    return found


def _facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says; a folder in place of the YAML file's source may hold another model."""
    replaced = model.get("path") and model.get("source")
    return {} if replaced else dict(model.get("card") or {})


def _datasets(text: Mapping[str, Any]) -> list[str]:
    """The hub id of the text that compensation and importance were computed on, if it has one."""
    place = (text.get("source") or {}).get("path", "")
    on_hub = not text.get("path") and _HUB_ID.fullmatch(place) and not Path(place).exists()
    return [place] if on_hub else []
