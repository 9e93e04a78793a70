"""What each config key invalidates, and that equal names mean equal content."""

import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from ppf.conf import plain, read_option
from ppf.digests import with_code
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.llm import load
from ppf.pruning.signatures import Signatures, recorded, signatures
from ppf.records import check
from ppf.records.policy import ConfigRecord
from ppf.stages.fit import predictor_signature
from ppf.text.identity import file_identity, warn_of_shared_documents
from tests.composing import changed, command_config, leaves
from tests.hub import NEW, OLD, REPOSITORY, downloaded

ALL = ("statistics", "order", "bank", "labels", "predictor")
# The longest prefix of a key tells what changes with it; all other keys invalidate nothing.
INVALIDATES = {
    "model.dtype": ALL,
    "model.source": ALL,
    "model.tie_embeddings": ALL,
    "text": ALL,
    "text.name": (),
    "text.column": (),
    "text.training": (),
    "text.windows.calibration": ALL,
    "text.windows.labelling": ("labels", "predictor"),
    "text.windows.test": (),
    "importance": ("order", "bank", "labels", "predictor"),
    "space": ("bank", "labels", "predictor"),
    "space.name": (),
    "space.stock": (),
    "space.query_heads": ("order", "bank", "labels", "predictor"),
    "space.whole_sites": ("order", "bank", "labels", "predictor"),
    "compensation": ("bank", "labels", "predictor"),
    "predictor": ("predictor",),
    "trainer": ("predictor",),
    "trainer.accelerator": (),
    "seed": ("predictor",),
}


@pytest.fixture(scope="module")
def config() -> DictConfig:
    cfg = command_config("search", ["paths.run=x", "model.dtype=float32", "predictor=residual"])
    OmegaConf.set_struct(cfg, False)
    return cfg


@cache
def composed(command: str, *overrides: str) -> DictConfig:
    return command_config(command, ["paths.run=x", *overrides])


def names(cfg: DictConfig) -> dict[str, str]:
    found: Signatures = signatures(cfg)
    kept = torch.tensor([[3, 3], [2, 3]])
    labels = Labels(kept, torch.tensor([3.0, 3.5], dtype=torch.double), ["sampler"] * 2)
    predictor = predictor_signature(cfg, found.labels, labels, Path(cfg.paths.cache))
    return vars(found) | {"predictor": predictor}


def expected(key: str) -> tuple[str, ...]:
    parts = key.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((INVALIDATES[prefix] for prefix in prefixes if prefix in INVALIDATES), ())


def test_names_of_artefacts_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Labels and statistics that were made by an earlier version are found again."""
    given = ["model=tiny", "paths.run=x", f"paths.cache={tmp_path}", "space.query_heads=false"]
    assert signatures(command_config("search", given)) == Signatures(
        statistics="f7dfa541e6ba", order="5c876b85fb85", bank="d696dfe8584a", labels="672acf4d1156"
    )


def test_a_mixture_counts_by_the_content_and_the_weights_of_its_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"

    def found(content: str, mixture: str) -> Signatures:
        file.write_text(content)
        given = [f"text.mixture={mixture}", f"paths.cache={tmp_path}"]
        return signatures(command_config("search", ["model=tiny", "paths.run=x", *given]))

    texts = f"[{{text: wikipedia_sample, weight: 1, path: {file}}}, {{text: code, weight: 1}}]"
    first = found("one", texts)
    assert found("one", texts) == first
    assert found("two", texts) != first
    assert found("one", texts.replace("code, weight: 1", "code, weight: 2")) != first


def test_every_key_invalidates_what_depends_on_it(config: DictConfig) -> None:
    before, wrong = names(config), {}
    keys = leaves(config)
    assert len(keys) > 100
    for key in keys:
        if key in ("text.path", "text.mixture", "model.path"):
            continue  # they have tests of their own
        cfg = config.copy()
        OmegaConf.update(cfg, key, changed(OmegaConf.select(config, key)))
        after = names(cfg)
        different = tuple(name for name in ALL if before[name] != after[name])
        if different != expected(key):
            wrong[key] = different
    assert not wrong


def tiny_folder(cache: str, folder: Path) -> DictConfig:
    cfg = command_config("search", ["model=tiny", "paths.run=x"])
    shutil.copytree(load(cfg.model, cache).model.name_or_path, folder)
    cfg.model.path, cfg.paths.cache = str(folder), cache
    return cfg


def test_models_that_differ_in_one_tensor_have_other_names(cache: str, tmp_path: Path) -> None:
    cfg = tiny_folder(cache, tmp_path / "model")
    before = signatures(cfg)
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.up_proj.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})
    changed_weights = signatures(cfg)
    assert changed_weights.statistics != before.statistics
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace("ByteLevel", "ByteLeveL"))
    other = signatures(cfg)
    assert other.labels != changed_weights.labels
    shutil.copytree(tmp_path / "model", tmp_path / "model" / "pruned")
    assert signatures(cfg) == other, "folders in the folder do not count"


def test_commits_of_a_repository_tell_models_apart(
    monkeypatch: pytest.MonkeyPatch, cache: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cfg = tiny_folder(cache, tmp_path / "model")
    cfg.model = read_option("model", "qwen2_5_0_5b")
    cfg.model.source.repository = REPOSITORY
    unknown = signatures(cfg)
    downloaded(tmp_path / "model", tmp_path / "hub", OLD)
    before, found = signatures(cfg), recorded(cfg)
    assert found.model.source.revision == OLD and before != unknown
    downloaded(tmp_path / "model", tmp_path / "hub", NEW)
    after = signatures(cfg)
    assert after.statistics != before.statistics
    cfg.model = found.model  # as a policy.json records it
    assert signatures(cfg) == before
    shutil.rmtree(tmp_path / "hub")
    assert signatures(cfg) == before, "a commit that is not here yet"
    check(plain(found), ConfigRecord, "the policy", "give another")


@pytest.mark.parametrize(
    ("override", "warns"),
    [
        (["text.seed=1"], True),
        (["text.splits.all.test=0.7"], True),
        (["text.splits.all.test=0.4"], False),
        (["text.window=64"], False),
        (["text=wikitext2"], False),
        (["text.path=gone.txt"], False),
    ],
)
def test_a_test_part_of_documents_of_the_search_is_told(
    override: list[str], warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found, other = composed("search"), composed("search", *override)
    same = [composed("search", "text=wikitext2", *own) for own in ([], ["text.seed=1"])]
    warn_of_shared_documents(*same)  # whose test part has a split of its own
    assert not capsys.readouterr().out
    warn_of_shared_documents(other, found)
    assert ("its perplexity may be too low" in capsys.readouterr().out) == warns


def test_the_same_file_at_another_path_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("a.txt", "One."), ("b.txt", "One."), ("c.txt", "Two.")):
        (tmp_path / name).write_text(words)
    given = ["paths.run=x", f"paths.cache={tmp_path}", "text.seed=1"]
    found, same, other = (
        command_config("search", [*given, f"text={text}", f"text.path={tmp_path / name}"])
        for text, name in (("c4", "a.txt"), ("wikipedia_sample", "b.txt"), ("c4", "c.txt"))
    )
    found.text.seed = 0
    warn_of_shared_documents(other, found)
    assert not capsys.readouterr().out
    warn_of_shared_documents(same, found)
    assert "its perplexity may be too low" in capsys.readouterr().out


def test_files_of_a_pattern_count_by_their_content(tmp_path: Path) -> None:
    found = list[object]()
    for folder, words in (("x", "1"), ("y", "1"), ("z", "2")):
        (tmp_path / folder).mkdir()
        for name, content in (("a.py", "0"), ("b.py", words)):
            (tmp_path / folder / name).write_text(content)
        found.append(file_identity(f"{tmp_path}/{folder}/*.py", "text.path", tmp_path))
    assert found[0] == found[1] != found[2]
    single = (file_identity(f"{tmp_path}/x/{name}", "", tmp_path) for name in ("a.py", "[a].py"))
    assert next(single) == next(single) == found[0]["files"][0]


@pytest.mark.parametrize("name", [["text.jsonl"], "**/*.jsonl"])
def test_data_files_count_by_their_content(
    config: DictConfig, tmp_path: Path, name: str | list[str]
) -> None:
    cfg, file = config.copy(), tmp_path / "text.jsonl"
    own = [f"{tmp_path}/{n}" for n in name] if isinstance(name, list) else f"{tmp_path}/{name}"
    files = {"train": own, "test": "of/the/hub.*"}
    cfg.text.source, cfg.paths.cache = {"path": "json", "data_files": files}, str(tmp_path)
    found = set()
    for words in ("One.", "Two!!"):
        file.write_text(words)
        found.add(signatures(cfg).statistics)
    assert len(found) == 2


def test_a_class_without_a_source_file_is_refused(tmp_path: Path) -> None:
    interactive = ModuleType("interactive")  # as `__main__` of a notebook: it has no file
    vars(interactive)["Own"] = type("Own", (), {"__module__": "interactive"})
    told = pytest.raises(PPFError, match="interactive.Own has no source file")
    with patch.dict(sys.modules, interactive=interactive), told:
        with_code({"compensation": [{"_target_": "interactive.Own"}]}, tmp_path)
    assert with_code({"_target_": "builtins.dict"}, tmp_path) == {"_target_": "builtins.dict"}


def test_classes_of_a_users_own_count_by_their_file(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file, cfg = tmp_path / "made_by_a_user.py", config.copy()
    file.write_text("class Own: ...\n")
    cfg.paths.cache = str(tmp_path)
    cfg.predictor.network._target_ = cfg.compensation._target_ = "made_by_a_user.Own"
    before = names(cfg)
    assert names(cfg) == before
    file.write_text("class Own: a = 1\n")
    after = names(cfg)
    assert [name for name in ALL if before[name] != after[name]] == [*ALL[2:]]
    cfg.compensation = config.compensation
    assert names(cfg)["labels"] == names(config)["labels"] != after["labels"]
    cfg.text.source._target_ = "made_by_a_user.Own"
    before = names(cfg)
    file.write_text("class Own: a = 22\n")
    assert names(cfg)["statistics"] != before["statistics"]
