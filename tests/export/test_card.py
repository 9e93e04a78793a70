"""The metadata of a model card, of which nothing is invented."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from ppf.export import card as module
from ppf.export.card import metadata
from ppf.pruning import LivePruner
from tests.export.conftest import POLICY, export_folder

CARD = """---
license: mit
language: [en, de]
datasets: [someone/words]
base_model: someone/its-own-base
widget: []
---
# A model
"""


def read(place: object, **config: Any) -> dict[str, Any]:
    """The metadata for the model of a folder or a hub id, with keys of the section `model`."""
    model: Any = SimpleNamespace(name_or_path=str(place))
    return yaml.safe_load(metadata(model, config, "transformers").to_yaml())


def test_a_folders_card_tells_licence_language_and_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    found = read(tmp_path)
    assert found["license"] == "mit" and found["language"] == ["en", "de"]
    assert found["datasets"] == ["someone/words"]
    assert "base_model" not in found, "the folder's own hub id is not known"
    assert "widget" not in found


def test_a_card_that_ppf_wrote_keeps_its_base(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "README.md").write_text(CARD)
    assert read(tmp_path)["base_model"] == "someone/its-own-base"


def test_a_hub_model_is_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.setattr(module, "small_file", lambda *given: tmp_path / "README.md")
    found = read("someone/a-model")
    assert found["base_model"] == "someone/a-model" and found["license"] == "mit"
    monkeypatch.setattr(module, "small_file", lambda *given: None)
    assert read("someone/a-model")["base_model"] == "someone/a-model"


def test_the_models_yaml_file_tells_what_no_card_does(tmp_path: Path) -> None:
    facts = {"base_model": "someone/original", "license": "apache-2.0", "language": ["en"]}
    assert read(tmp_path, path=None, card=facts).items() >= facts.items()
    source = {"repository": "someone/original"}
    other = read(tmp_path, path=str(tmp_path), source=source, card=facts)
    assert "base_model" not in other, "another folder holds another model"
    own = read(tmp_path, path=str(tmp_path), source=None, card=facts)
    assert own.items() >= facts.items(), "model=local"


def test_metadata_that_is_not_readable_is_left_out(tmp_path: Path) -> None:
    for text in ("# no metadata\n", "---\n: [\n---\n", "---\njust text\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert not {"license", "datasets"} & read(tmp_path).keys()


@pytest.mark.parametrize("pruner", ["llama-groups-of-3-tied"], indirect=True)
@pytest.mark.parametrize("value", ["mit\n---\n# Mine", "a: b", "\u2028---\r\n---"])
def test_what_a_strangers_card_says_stays_a_value(
    pruner: LivePruner, tmp_path: Path, value: str
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'license': value})}---\n")
    pruner.lm.model.name_or_path = str(tmp_path)
    card = (export_folder(pruner, tmp_path / "out", POLICY) / "README.md").read_text()
    assert ModelCard(card).data["license"] == value
    assert ModelCard(card).text.lstrip().startswith("# a model, ")
