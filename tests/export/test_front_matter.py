"""The metadata of a model card, of which nothing is invented."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ppf.export import front_matter as module
from ppf.export.front_matter import front_matter

CARD = """---
license: mit
language: [en, de]
datasets: [someone/words]
base_model: someone/its-own-base
widget: []
---
# A model
"""


def read(source: object, **config: Any) -> dict[str, Any]:
    model: Any = SimpleNamespace(name_or_path=str(source))
    return yaml.safe_load(front_matter(model, config, "transformers"))


def test_a_folder_without_a_card_tells_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "structured-pruning"],
        "metrics": ["perplexity"],
    }


def test_a_folders_card_tells_licence_language_and_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    found = read(tmp_path)
    assert found["license"] == "mit" and found["language"] == ["en", "de"]
    assert found["datasets"] == ["someone/words"]
    assert "base_model" not in found, "the folder's own hub id is not known"
    assert "widget" not in found


def test_one_data_set_may_stand_without_a_list(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.replace("[someone/words]", "wikitext"))
    assert read(tmp_path)["datasets"] == ["wikitext"]


def test_values_that_are_no_names_are_left_out(tmp_path: Path) -> None:
    card = CARD.replace("[someone/words]", "[{name: words}]").replace("[en, de]", "{a: b}")
    (tmp_path / "README.md").write_text(card)
    found = read(tmp_path)
    assert found["license"] == "mit" and not {"datasets", "language"} & found.keys()


def test_a_card_that_ppf_wrote_keeps_its_base_and_lists_each_data_set_once(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "README.md").write_text(CARD)
    found = read(tmp_path, text={"path": None, "source": {"path": "someone/words"}})
    assert found["base_model"] == "someone/its-own-base" and found["datasets"] == ["someone/words"]


def test_a_hub_model_is_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.setattr(module, "cached_file", lambda *given: tmp_path / "README.md")
    text = {"path": None, "source": {"path": "Salesforce/wikitext"}}
    found = read("someone/a-model", text=text)
    assert found["base_model"] == "someone/a-model" and found["license"] == "mit"
    assert found["datasets"] == ["someone/words", "Salesforce/wikitext"]
    monkeypatch.setattr(module, "cached_file", lambda *given: None)
    assert read("someone/a-model")["base_model"] == "someone/a-model"


def test_the_models_yaml_file_tells_what_no_card_does(tmp_path: Path) -> None:
    facts = {"base_model": "someone/original", "license": "apache-2.0", "language": ["en"]}
    found = read(tmp_path, model={"path": None, "card": facts})
    assert found.items() >= facts.items()
    replaced = {"path": str(tmp_path), "source": {"repository": "someone/original"}}
    other = read(tmp_path, model=replaced | {"card": facts})
    assert "base_model" not in other, "another folder holds another model"
    own = read(tmp_path, model={"path": str(tmp_path), "source": None, "card": facts})
    assert own.items() >= facts.items(), "model=local"


def test_a_readme_without_readable_metadata_is_no_error(tmp_path: Path) -> None:
    for text in ("# no metadata\n", "---\n: [\n---\n", "---\njust text\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert "license" not in read(tmp_path)


def test_a_local_text_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for source in ({"path": str(tmp_path / "a" / "b")}, {}, None):
        assert "datasets" not in read(tmp_path, text={"path": None, "source": source})
    named = {"path": "mine.txt", "source": {"path": "Salesforce/wikitext"}}
    assert "datasets" not in read(tmp_path, text=named)
