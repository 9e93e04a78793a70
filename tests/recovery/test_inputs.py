"""What a recovery reads, and what starts another training."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from ppf.conf import read_option
from ppf.llm import LanguageModel, load
from ppf.recovery.inputs import RecoveryText, training_folder, weights_identity
from ppf.text.parts import build_text
from tests.articles import write_articles
from tests.composing import changed, command_config, leaves
from tests.recoveries import quick

MODEL = read_option("model", "tiny")
RECOVERY = ("text", "loss", "recovery", "trainer", "seed")
WITHOUT_EFFECT = (
    "text.name",
    "text.column",
    "text.windows",
    "text.training.more.column",
    "recovery._target_",
    "recovery.micro_batch",
    "trainer._target_",
)


def composed(*overrides: str) -> DictConfig:
    return command_config("recover", ["paths.run=x", *overrides])


@pytest.fixture(scope="module")
def lm(cache: str) -> LanguageModel:
    return load(MODEL, cache)


def test_no_window_has_a_document_of_a_test_part(
    lm: LanguageModel, cache: str, tmp_path: Path
) -> None:
    """Neither of the recovery's text, nor of the one that the policy was found with."""
    write_articles(tmp_path)
    cfg, found_with = (composed(*quick(tmp_path, cache), f"text.seed={s}") for s in (0, 1))
    tested = [
        document
        for given in (cfg, found_with)
        for document in build_text(given.text, cache).part("test")
    ]

    def read(found_with: DictConfig) -> str:
        windows, _ = RecoveryText(cfg, found_with).read(MODEL)
        return "".join(lm.tokenizer.decode(part.flatten()) for part in windows)

    assert not [document for document in tested if document in read(found_with)]
    assert [document for document in tested if document in read(cfg)]  # of the other text


def name(cfg: DictConfig, found_with: DictConfig | None = None) -> str:
    return training_folder(RecoveryText(cfg, found_with or cfg), ["weights"]).name


def test_keys_of_text_loss_and_training_start_another_training() -> None:
    config, found = composed(), {}
    OmegaConf.set_struct(config, False)
    config.text.mixture = None  # it has a test of its own
    for key in leaves(config):
        if OmegaConf.select(config, key) is not None:
            cfg = config.copy()
            OmegaConf.update(cfg, key, changed(OmegaConf.select(config, key)))
            found[key] = name(cfg) != name(config)
    expected = {k: k.startswith(RECOVERY) and not k.startswith(WITHOUT_EFFECT) for k in found}
    assert found == expected


def test_a_training_of_an_earlier_version_is_found_again(tmp_path: Path) -> None:
    """With `loss=kl` and the default text, as version cd91afe named it."""
    assert name(composed(f"paths.cache={tmp_path}")) == "43c59080bd51"


def test_added_documents_and_the_test_part_start_another_training(tmp_path: Path) -> None:
    file, jsonl = tmp_path / "more.txt", tmp_path / "more.jsonl"
    jsonl.write_text("One text.")

    def with_words(words: str, *overrides: str) -> str:
        file.write_text(words)
        return name(composed(f"paths.cache={tmp_path}", f"{more}={file}", *overrides))

    more = "text.training.more.path"
    first = with_words("One text.")
    assert with_words("One text.", "text.windows.test=3") == first
    assert with_words("Another text.") != first
    assert with_words("One text.", f"{more}={jsonl}") != first
    # Documents like those of the test part are left out.
    assert with_words("One text.", "text.splits.all.test=0.4") != first
    cfg, found_with = composed(), composed("text.seed=1")
    assert name(cfg, found_with) != name(cfg)


def test_weights_the_tuner_and_its_code_start_another_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights, code = tmp_path / "model.safetensors", tmp_path / "tuner_of_a_user.py"
    weights.write_bytes(b"0")
    code.write_text("from ppf.recovery.tuners import LoRA\n\nclass Own(LoRA): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def identity(*overrides: str) -> list[Any]:
        cfg = composed(f"paths.cache={tmp_path}", "tune=lora", *overrides)
        return weights_identity(tmp_path, cfg)

    own = "tune.lora._target_=tuner_of_a_user.Own"
    found = [identity(), identity("tune.lora.rank=3"), identity(own)]
    code.write_text(code.read_text() + "# changed\n")
    found.append(identity(own))
    weights.write_bytes(b"01")
    found.append(identity(own))
    assert found[-1] == identity(own)
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
