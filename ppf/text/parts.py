"""Texts in disjoint parts: calibration, labelling and test; training and validation.

The last two are read by recovery training. They share documents with calibration and labelling, but
never with test.
"""

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppf.conf import DEFAULT_TEXT, read_option
from ppf.errors import PPFError
from ppf.progress import say
from ppf.text.files import read_file
from ppf.text.windows import begin_with, check_embedded, even_places, evenly, leading_tokens

_RUN = 13  # words that two documents may not share
PartName = Literal["calibration", "labelling", "test", "training", "validation"]


@dataclass
class Text:
    """Documents that are split into parts and cut into windows of tokens.

    A document that occurs several times in a split is read once.

    Args:
        name: name of the text, for reports and error messages.
        splits: for each split of the source, the parts that receive its documents. Each part has a
            weight; its share of the documents is this weight over the sum of the split's weights.
        documents: returns the documents of a split (a function of `ppf.text.corpora`).
        window: number of tokens in a window; windows do not overlap.
        windows: number of windows of each part; None: all. They are spread evenly over the part, so
            that few windows still cover many documents.
        seed: seed of the shuffle that precedes the split into parts.
        bos: position of the tokens that the tokenizer puts before every text (BOS for Gemma and
            Llama). "window": at the start of every window, as part of its length. "stream": once,
            before the first window of a part. The first token of a window is never scored.

    Raises:
        PPFError: `window`, a number of windows, or `bos` is invalid.
    """

    name: str
    splits: dict[str, dict[PartName, float]]
    documents: Callable[[str], Sequence[str]]
    window: int
    windows: dict[PartName, int | None]
    seed: int
    bos: Literal["window", "stream"] = "window"

    def __post_init__(self) -> None:
        if self.window < 2:
            raise PPFError(f"text.window={self.window} is too short: give at least 2 tokens.")
        if self.bos not in ("window", "stream"):
            raise PPFError(f"text.bos={self.bos} is unknown: give window or stream.")
        for part, count in self.windows.items():
            if count is not None and count < 1:
                raise PPFError(
                    f"text.windows.{part}={count} is too few: give at least 1, or null for all."
                )

    @cached_property
    def parts(self) -> dict[str, list[str]]:
        """The documents of each part, by the part's name."""
        parts: dict[str, list[str]] = {}
        for split, shares in self.splits.items():
            documents = list(dict.fromkeys(d for d in self.documents(split) if d.strip()))
            random.Random(self.seed).shuffle(documents)
            for part in shares:
                low, high = spans(self.splits, part)[split]
                chosen = slice(round(len(documents) * low), round(len(documents) * high))
                parts.setdefault(part, []).extend(documents[chosen])
        return parts

    def part(self, name: PartName) -> list[str]:
        """The documents of a part.

        Raises:
            PPFError: the text has no such part.
        """
        if name not in self.parts:
            new = "training." if name in ("training", "validation") else ""
            raise PPFError(
                f"text={self.name} has no part {name}: give it a share in text.{new}splits, or"
                " another text."
            )
        return self.parts[name]

    @cached_property
    def _streams(self) -> dict[tuple[PartName, PreTrainedTokenizerBase], Tensor]:
        return {}

    def leading(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids of the tokens that every window begins with."""
        return leading_tokens(tokenizer) if self.bos == "window" else []

    def stream(self, part: PartName, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " tokens"]:
        """All tokens of a part: its documents, joined by empty lines, without `leading`.

        The result is cached, since a command needs it several times.

        Raises:
            PPFError: there is a special token that the model does not embed.
        """
        key = part, tokenizer
        if key not in self._streams:
            joined, special = "\n\n".join(self.part(part)), self.bos == "stream"
            ids = tokenizer(joined, add_special_tokens=special, verbose=False)["input_ids"]
            tokens = torch.tensor(ids, dtype=torch.long)
            check_embedded(tokens, tokenizer, f"the {part} part of text={self.name}")
            self._streams[key] = tokens
        return self._streams[key]

    def tokens(
        self, part: PartName, tokenizer: PreTrainedTokenizerBase
    ) -> Int[Tensor, "windows window"]:
        """The windows of a part.

        Raises:
            PPFError: the part has too little text for its number of windows.
        """
        every = self.every_window(part, tokenizer, self.window)
        return every[self._chosen(part, len(every))]

    def first_tokens(
        self, part: PartName, tokenizer: PreTrainedTokenizerBase, count: int
    ) -> Int[Tensor, "tokens 1"]:
        """Evenly spaced tokens of a part, each in a window of its own.

        They are further samples of the first token of a window. There are none if every window
        begins with the same token (see `leading`).
        """
        ids = self.stream(part, tokenizer)[: 0 if self.leading(tokenizer) else None]
        return evenly(ids[:, None], count)

    def others(
        self, part: PartName, tokenizer: PreTrainedTokenizerBase
    ) -> Int[Tensor, "windows window"]:
        """The windows of a part that `tokens` leaves out; there may be none."""
        every = self.every_window(part, tokenizer, self.window)
        left = torch.ones(len(every), dtype=torch.bool)
        left[self._chosen(part, len(every))] = False
        return every[left]

    def every_window(
        self, part: PartName, tokenizer: PreTrainedTokenizerBase, window: int
    ) -> Int[Tensor, "windows window"]:
        """The whole part, cut into windows of `window` tokens."""
        ids, leading = self.stream(part, tokenizer), self.leading(tokenizer)
        size = window - len(leading)
        count = len(ids) // size
        return begin_with(leading, ids[: count * size].view(count, size))

    def _chosen(self, part: PartName, available: int) -> Int[Tensor, " windows"]:
        """Which windows of a part are used."""
        wanted = self.windows[part] or max(available, 1)
        if available < wanted:
            section = "text.training" if "training" in self.windows else "text"
            if not self.part(part):
                raise PPFError(
                    f"the {part} part of text={self.name} has no documents: give a text of more"
                    " documents. In a .txt file, empty lines separate them; in a .jsonl or .parquet"
                    " file, a row is a document."
                )
            raise PPFError(
                f"the {part} part of text={self.name} has {available} windows of {self.window}"
                f" tokens instead of {wanted}: lower {section}.windows.{part} or text.window, or"
                " give a longer text."
            )
        return even_places(available, wanted)


def spans(
    splits: Mapping[str, Mapping[PartName, float]], part: str
) -> dict[str, tuple[float, float]]:
    """For each split, the range of its documents that a part receives, as shares from 0 to 1.

    Splits that give the part no documents are left out.
    """
    found = {}
    for split, shares in splits.items():
        reached = 0.0
        for name, share in shares.items():
            low, reached = reached, reached + share
            if name == part:
                whole = sum(shares.values())
                found[split] = (low / whole, reached / whole)
    return found


def local_splits(
    splits: Mapping[str, Mapping[PartName, float]],
) -> dict[str, dict[PartName, float]]:
    """The shares of the parts of a local file (see `Text.splits`).

    Args:
        splits: of the text that the file replaces; they name the required parts.
    """
    if any("training" in shares for shares in splits.values()):
        return {"all": {"training": 0.45, "validation": 0.05, "test": 0.5}}
    return {"all": {"calibration": 0.25, "labelling": 0.25, "test": 0.5}}


def training_text(config: DictConfig) -> DictConfig:
    """The `text=` config of the parts training and validation of a text.

    Its section `training` replaces the text's splits and windows, and keys of its source.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    own = {key: value for key, value in plain.pop("training").items() if value is not None}
    del own["more"]  # see `build_training_text`
    if plain["source"] and "source" in own:
        own["source"] = plain["source"] | own["source"]
    return OmegaConf.create({**plain, **own})


def build_training_text(
    config: DictConfig, cache: str, tested: Collection[str], foreign: Collection[str] = ()
) -> Text:
    """The parts training and validation of a `text=` config, with the documents of `training.more`.

    Documents that occur in a test part, or share 13 consecutive words with a document of `foreign`,
    are left out. So are training documents that occur in the validation part. Of `training.more`,
    those that share 13 consecutive words with a test part or the validation part are also left out.

    Args:
        config, cache: as for `build_text`.
        tested: documents of test parts.
        foreign: those of them that another text has cut into documents.

    Raises:
        PPFError: the file cannot be read.
    """
    text, more = build_text(training_text(config), cache), config.training.more
    unread = set(tested)
    for part in ("validation", "training"):
        documents = text.part(part)
        kept = [document for document in documents if document not in unread]
        if foreign:
            known = set(without_overlap(kept, foreign))
            kept = [document for document in kept if document in known]
        text.parts[part] = kept
        unread.update(kept)
        if left_out := len(documents) - len(kept):
            say(f"Left out {left_out} documents of the {part} part, found in another part.")
    if more.path:
        documents = read_file(more.path, more.column, "text.training.more")
        kept = without_overlap(documents, [*text.parts["validation"], *tested])
        say(f"{more.path}: the training part has {len(kept)} of its {len(documents)} documents.")
        text.parts["training"] += kept
    return text


def without_overlap(documents: Iterable[str], others: Iterable[str]) -> list[str]:
    """The documents that share no 13 consecutive words with the others, each of them once.

    Case and punctuation do not count. Thirteen words are the usual length in such tests (Brown et
    al. 2020, appendix C).
    """
    known = np.sort(np.concatenate([_runs(""), *map(_runs, others)]))

    def overlaps(document: str) -> bool:
        runs = _runs(document)
        places = np.searchsorted(known, runs).clip(max=len(known) - 1)
        return bool((known[places] == runs).any())

    return [document for document in dict.fromkeys(documents) if not overlaps(document)]


def _runs(document: str) -> Int[np.ndarray, " runs"]:
    """Hashes of all runs of 13 words of a document; a shorter document is one run."""
    words = re.findall(r"\w+", document.lower())
    starts = range(max(len(words) - _RUN, 0) + 1)
    return np.array([hash(tuple(words[start : start + _RUN])) for start in starts])


def default_text() -> DictConfig:
    """The config of the default text."""
    return read_option("text", DEFAULT_TEXT)


def training_name(config: DictConfig) -> str:
    """The name of the training text of a `text=` config."""
    more = config.training.more.path
    return f"{text_name(config)} + {Path(more).name}" if more else text_name(config)


def text_name(config: DictConfig) -> str:
    """The name of a `text=` config; that of the file if it has a `path`."""
    return Path(config.path).name if config.path else str(config.name)


def build_text(config: DictConfig, cache: str) -> Text:
    """The text of a `text=` config.

    Args:
        config: has the arguments of `Text`, and `path`, `source` and `column`. If `path` is not
            null, this local file replaces the source.
        cache: folder for cleaned texts.
    """
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    plain = {str(key): value for key, value in container.items()}
    path, source, column = plain.pop("path"), plain.pop("source"), plain.pop("column")
    plain.pop("training", None)  # see `training_text`
    if path:
        plain["splits"] = local_splits(plain["splits"])
        plain["name"] = text_name(config)
        return Text(**plain, documents=lambda split: read_file(path, column))
    if source["_target_"] == "ppf.text.corpora.wikipedia_sample":
        source["cache"] = cache
    return Text(**plain, documents=instantiate(source, _partial_=True, _convert_="all"))
