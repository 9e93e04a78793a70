import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from fsspec.implementations.reference import ReferenceFileSystem
from omegaconf import OmegaConf

from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.llm.checkpoint import read_tokenizer
from ppf.llm.sources import byte_tokenizer
from ppf.text import Text
from ppf.text.corpora import hub
from ppf.text.parts import build_text
from ppf.text.training import build_training_text, training_text, without_overlap
from tests.checkpoints import CHECKPOINTS, bos_tokenizer, random_model
from tests.composing import command_config
from tests.records.gadgets import Touch

PARTS = ("calibration", "labelling", "test")
NEW = ("training", "validation")


def text(name: str = "wikipedia_sample", cache: str = "unused", **overrides: object) -> Text:
    config = OmegaConf.merge(
        read_option("text", name), {"window": 16, "windows": {part: 4 for part in PARTS}}, overrides
    )
    return build_text(config, cache)


def documents() -> list[str]:
    return [f"Document {i} says that " + " ".join(str(j * i) for j in range(60)) for i in range(40)]


def written(file: Path, rows: Iterable[str], column: str = "text") -> Path:
    """A .jsonl file of documents."""
    file.write_text("\n".join(json.dumps({column: row}) for row in rows))
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "text.jsonl", documents())


def test_the_parts_of_a_file_are_disjoint(path: Path) -> None:
    path.with_suffix(".txt").write_text("\n\n".join(documents()))
    Dataset.from_dict({"text": documents()}).to_parquet(path.with_suffix(".parquet"))
    for file in (path, path.with_suffix(".txt"), path.with_suffix(".parquet")):
        parts = text(path=str(file)).parts
        dealt = [document for part in PARTS for document in parts[part]]
        assert sorted(dealt) == sorted(documents())
        assert [len(parts[p]) for p in PARTS] == [10, 10, 20]


def test_code_is_the_standard_library_under_its_own_name(tmp_path: Path) -> None:
    cfg = command_config("search", ["model=tiny", "text=code", f"paths.cache={tmp_path}"])
    assert cfg.text.name == "code"
    parts = build_text(cfg.text, str(tmp_path)).parts
    assert Path(json.__file__).parent.with_name("heapq.py").read_text() in sum(parts.values(), [])
    assert sum(map(len, parts["test"])) > 10**6, "text for 128 windows"


def test_a_mixture_has_the_parts_of_its_texts_in_the_shares_of_their_weights(
    path: Path, tmp_path: Path
) -> None:
    other = written(
        tmp_path / "other.jsonl", (f"Other {i} " + "x" * 50 for i in range(200)), "body"
    )
    entries = [
        {"text": "wikipedia_sample", "path": str(path), "weight": 1},
        {"text": "code", "path": str(other), "column": "body", "weight": 3},
    ]
    mixed = text(mixture=entries)
    whole = [text(path=str(path)), text("code", path=str(other), column="body")]
    for part in PARTS:
        first, second = (
            [document for document in mixed.parts[part] if document in one.parts[part]]
            for one in whole
        )
        assert first + second == mixed.parts[part], "each document is in the part that it was in"
        shares = [sum(map(len, documents)) for documents in (first, second)]
        assert 2.7 < shares[1] / shares[0] < 3.3
    training = read_option("text", "wikipedia_sample")
    training.mixture = entries
    parts = build_training_text(training, "unused", []).parts
    assert parts["training"] and not {*parts["training"]} & {*mixed.parts["test"]}
    with pytest.raises(PPFError, match="text.mixture: poems is unknown: give one of .*chat"):
        text(mixture=[{"text": "poems", "weight": 1}])


def test_equal_documents_are_read_once(path: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "twice.jsonl", 2 * documents())
    assert text(path=str(file)).parts == text(path=str(path)).parts


def test_training_documents_that_occur_in_validation_are_left_out(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        written(tmp_path / f"{split}.json", [*(f"{split} {i}" for i in range(9)), "both"])
    files = {split: f"{split}.json" for split in ("training", "validation")}
    given = {"source": {"path": str(tmp_path)}, "training": {"source": {"data_files": files}}}
    config = OmegaConf.merge(read_option("text", "c4"), given)
    parts = build_training_text(config, "unused", []).parts
    assert "both" in parts["validation"] and "both" not in parts["training"]
    assert [len(parts[part]) for part in NEW] == [9, 10]


def test_a_special_token_without_embedding_is_named(tmp_path: Path) -> None:
    lm = random_model(CHECKPOINTS["llama-wide-heads"])
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # as Gemma 3's
    lm.model.config.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(str(tmp_path), lm.model.config)
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join([*documents(), *(f"An {i} <image>." for i in range(9))]))
    with pytest.raises(PPFError, match="has the token <image>, which the model does not embed"):
        text(path=str(file)).tokens("test", tokenizer)
    file.write_text("\n\n".join(documents()))
    text(path=str(file)).tokens("test", tokenizer)


def test_training_and_validation_share_no_document_with_test_or_each_other(path: Path) -> None:
    own = text(path=str(path)).parts
    config = OmegaConf.merge(read_option("text", "c4"), {"path": str(path)})
    parts = build_text(training_text(config), "unused").parts
    assert [len(parts[p]) for p in ("training", "validation", "test")] == [18, 2, 20]
    assert parts["test"] == own["test"]
    assert sorted(d for documents in parts.values() for d in documents) == sorted(documents())


def test_more_documents_are_added_to_the_training_part(path: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    given = {"path": str(path), "training": {"more": {"path": str(more), "column": "words"}}}
    config = OmegaConf.merge(read_option("text", "c4"), given)
    without = build_text(training_text(config), "unused").parts
    new = [f"Another text, number {i}, of fewer than thirteen words." for i in range(3)]
    written(more, [*new, new[0], without["test"][0], without["validation"][0]], "words")
    found = build_training_text(config, "unused", without["test"]).parts
    assert found == without | {"training": without["training"] + new}


def test_documents_that_overlap_with_another_texts_test_part_are_left_out(path: Path) -> None:
    config = OmegaConf.merge(read_option("text", "c4"), {"path": str(path)})
    without = build_text(training_text(config), "unused").parts
    longer = [f"{without['training'][0]} And more."]
    for foreign, left_out in (((), 0), (longer, 1)):
        found = build_training_text(config, "unused", longer, foreign).parts
        assert found["training"] == without["training"][left_out:]


def test_documents_that_share_13_words_in_a_row_are_left_out() -> None:
    words = [f"word{i}" for i in range(30)]
    shares, differs = " ".join(words[10:23]), " ".join(words[10:22])
    found = without_overlap(
        [f"Before. {shares.upper()}, after!", f"Before. {differs} after."], [" ".join(words)]
    )
    assert found == [f"Before. {differs} after."]


def test_windows_begin_with_the_tokenizers_bos(path: Path) -> None:
    read, plain, bos = text(path=str(path)), byte_tokenizer(), bos_tokenizer()
    windows, stream = read.tokens("test", bos), read.stream("test", plain)
    assert windows.shape == (4, 16) and (windows[:, 0] == 0).all()
    assert torch.equal(windows[0, 1:], stream[:15])
    assert torch.equal(read.stream("test", bos), stream)
    plain.bos_token = plain.eos_token  # it has a BOS token but does not add it, as SmolLM2
    assert torch.equal(read.tokens("test", plain)[0], stream[:16])


def test_too_little_text_names_the_overrides_to_lower(path: Path) -> None:
    small = text(path=str(path), windows={"labelling": 10_000})
    with pytest.raises(PPFError, match=r"lower text\.windows\.labelling"):
        small.tokens("labelling", byte_tokenizer())
    with pytest.raises(PPFError, match=r"\(0 are in this part; empty lines separate"):
        replace(small, splits={"all": {"test": 1.0}}).tokens("labelling", byte_tokenizer())


def test_wikitext_lines_become_articles(tmp_path: Path) -> None:
    lines = [
        line for i in range(6) for line in (f" = Title {i} = \n", " == Part == \n", f"Text {i}.\n")
    ]
    for split in ("train", "validation", "test"):
        Dataset.from_dict({"text": lines}).to_parquet(tmp_path / f"{split}-0.parquet")
    parts = text("wikitext2", source={"path": str(tmp_path), "name": None}).parts
    assert [len(parts[p]) for p in PARTS] == [6, 6, 6]
    assert sorted(parts["test"])[0] == " = Title 0 = \n == Part == \nText 0.\n"


RAW = [
    line
    for i in range(9)
    for line in (" \n", f" = Title {i} = \n", "", " An actor . \n", " \n", " = = Career = = \n")
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with the layout of WikiText-2."""
    for split in ("train", "validation", "test"):
        Dataset.from_dict({"text": [*RAW, f"{split} ends .\n"]}).to_parquet(
            tmp_path / f"{split}-0.parquet"
        )
    return tmp_path


@pytest.mark.parametrize("make", [byte_tokenizer, bos_tokenizer])
@pytest.mark.parametrize(
    ("split", "part"), [("test", "test"), ("validation", "labelling"), ("train", "calibration")]
)
def test_raw_wikitext_has_the_published_windows(raw: Path, make, split: str, part: str) -> None:
    """Windows as Wanda and SliceGPT cut them, with BOS where the tokenizer puts it."""
    tokenizer, length = make(), 20
    rows = Dataset.from_parquet(str(raw / f"{split}-0.parquet"))["text"]
    encoded = tokenizer("\n\n".join(rows), return_tensors="pt")["input_ids"]
    count = encoded.numel() // length
    expected = [encoded[:, i * length : (i + 1) * length] for i in range(count)]

    every = {"windows": {name: None for name in PARTS}, "window": length}
    read = text("wikitext2_raw", source={"path": str(raw), "name": None}, **every)
    assert torch.equal(read.tokens(part, tokenizer), torch.cat(expected))


def test_a_data_set_names_no_file_system_that_runs_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference file system fills in Jinja templates, which can read the environment."""
    made: list[Any] = []
    monkeypatch.setattr(ReferenceFileSystem, "__init__", lambda *given, **_: made.append(given))
    (tmp_path / "refs.json").write_text('{"version": 1, "refs": {"c.txt": "text"}}')
    files = f"reference://*.txt::{tmp_path}/refs.json"
    card = f'---\nconfigs:\n- config_name: default\n  data_files: "{files}"\n---\n'
    (tmp_path / "README.md").write_text(card)
    source = {"path": str(tmp_path), "name": None}
    with pytest.raises(PPFError, match="Protocol not known: reference"):
        _ = text("wikitext2_raw", source=source, splits={"train": {"calibration": 1}}).parts
    assert not made


def test_a_data_set_of_pickles_is_refused(tmp_path: Path) -> None:
    """The library's loader "pandas" would run the code in them."""
    file, ran = tmp_path / "train.pkl", tmp_path / "ran"
    file.write_bytes(pickle.dumps(Touch(ran)))
    given = {"name": None, "data_files": {"train": str(file)}, "limit": 9}
    with pytest.raises(PPFError, match="reads pickles, which can run code"):
        hub("train", path="pandas", column="text", **given)
    assert not ran.exists()


def test_other_columns_of_a_data_set_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would run Ghostscript on an EPS picture."""
    rows = {"text": ["One.", "Two."], "picture": [{"bytes": b"%!PS-Adobe", "path": None}] * 2}
    features = Features({"text": Value("string"), "picture": Image()})
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "train-0.parquet")
    decoded: list[Any] = []
    monkeypatch.setattr(Image, "decode_example", lambda *given, **_: decoded.append(given))
    given = {"path": str(tmp_path), "name": None, "data_files": None, "limit": 9}
    assert hub("train", column="text", **given) == ["One.", "Two."]
    with pytest.raises(PPFError, match="contains dict, not text.* another text.source.column"):
        hub("train", column="picture", **given)
    assert not decoded


def test_other_windows_are_those_that_no_label_reads(path: Path) -> None:
    some, tokenizer = text(path=str(path)), byte_tokenizer()
    used, others = (
        set(map(tuple, windows("labelling", tokenizer).tolist()))
        for windows in (some.tokens, some.others)
    )
    every = text(path=str(path), windows={"labelling": None})
    assert len(used) == 4 and not used & others
    assert used | others == set(map(tuple, every.tokens("labelling", tokenizer).tolist()))
    assert not len(every.others("labelling", tokenizer))
