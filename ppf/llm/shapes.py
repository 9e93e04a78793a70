"""Models without weights: their structure, from the config alone."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ppf.conf import options, read_option
from ppf.errors import PPFError
from ppf.llm.adapter import Adapter
from ppf.llm.checkpoint import read_config
from ppf.llm.families import adapter_for


def known_shapes() -> dict[str, dict[str, Any]]:
    """The config keys that determine the size of known models, by the name of the model."""
    shapes: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("shapes.yaml")))
    return shapes


def skeleton(config: DictConfig) -> tuple[PreTrainedModel, Adapter]:
    """The model of a `model=` config, whose weights have shapes but no values, and its adapter.

    Raises:
        PPFError: the model's config is not available, or its family is not supported.
    """
    found = _config(config)
    adapter = adapter_for(found)  # refuses other families before transformers does
    if config.get("tie_embeddings"):
        found.tie_word_embeddings = True
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(found, trust_remote_code=False)
    return model, adapter


def _config(config: DictConfig) -> PreTrainedConfig:
    if config.path:
        return read_config(config.path)
    source = config.source or {}
    named = config.name in options("model")
    shipped = read_option("model", config.name).source if named else source
    known = known_shapes().get(config.name) if source == shipped else None
    if shape := source.get("config") or known:
        return AutoConfig.for_model(**shape)
    if repository := source.get("repository"):
        return read_config(repository, revision=source.get("revision"))
    raise PPFError(
        f"the structure of model={config.name} is not known without its weights: give a local"
        " folder with model.path=FOLDER."
    )
