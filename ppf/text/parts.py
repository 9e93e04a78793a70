"""Texts in disjoint parts: calibration, labelling and test; training and validation.

The last two are read by recovery training (`ppf.text.training`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from jaxtyping import Bool, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppf.conf import options, plain, read_option
from ppf.errors import PPFError
from ppf.progress import say
from ppf.text.chat import Conversation, joined
from ppf.text.files import read_file
from ppf.text.windows import check_embedded, even_places, evenly, leading_tokens

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
        loss_on: "assistant": all losses count only the assistant's messages in conversations, each
            with the token behind it, which ends the message. "all": they count all tokens.
    """

    name: str
    splits: dict[str, dict[PartName, float]]
    documents: Callable[[str], Sequence[str]]
    window: int
    windows: dict[PartName, int | None]
    seed: int
    bos: Literal["window", "stream"] = "window"
    loss_on: Literal["all", "assistant"] = "all"
    _streams: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        """The documents of a part; there are none if no split names it."""
        return self.parts.get(name, [])

    def leading(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids of the tokens that every window begins with."""
        return leading_tokens(tokenizer) if self.bos == "window" else []

    def stream(self, part: PartName, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " tokens"]:
        """All tokens of a part: its documents, joined by empty lines, without `leading`.

        Those that are not scored are marked (`ppf.llm.marked`). The result is cached, since a
        command needs it several times.

        Raises:
            PPFError: there is a special token that the model does not embed, or a conversation that
                has no chat template.
        """
        key = part, tokenizer
        if key not in self._streams:
            special, marks = self.bos == "stream", self.loss_on == "assistant"
            written, answers = joined(self.part(part), tokenizer, self.name, answers=marks)
            given = {"add_special_tokens": special, "return_offsets_mapping": marks}
            encoded = tokenizer(written, verbose=False, **given)
            tokens = torch.tensor(encoded["input_ids"], dtype=torch.long)
            check_embedded(tokens, tokenizer, f"the {part} part of text={self.name}")
            if marks:
                scored = _within(encoded["offset_mapping"], answers)
                tokens = torch.where(scored, tokens, ~tokens)  # see `ppf.llm.marked`
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
        """The whole part, cut into windows of `window` tokens, of which some are scored."""
        ids, leading = self.stream(part, tokenizer), self.leading(tokenizer)
        size = window - len(leading)
        count = len(ids) // size
        first = torch.tensor(leading, dtype=ids.dtype).expand(count, -1)
        cut = torch.cat([first, ids[: count * size].view(count, size)], 1)
        return cut[(cut[:, 1:] >= 0).any(1)]

    def _chosen(self, part: PartName, available: int) -> Int[Tensor, " windows"]:
        """Which windows of a part are used."""
        wanted = self.windows[part] or max(available, 1)
        if available < wanted:
            section = "text.training" if "training" in self.windows else "text"
            raise PPFError(
                f"the {part} part of text={self.name} has {available} windows of {self.window}"
                f" tokens instead of {wanted}: lower {section}.windows.{part} or text.window, or"
                f" give a text of more documents ({len(self.part(part))} are in this part; empty"
                " lines separate those of a .txt file)."
            )
        return even_places(available, wanted)


def _within(
    places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> Bool[Tensor, " tokens"]:
    """Whether each token overlaps a span, or is the first one behind it.

    Args:
        places: where each token begins and ends.
        spans: in ascending order.
    """
    scored = torch.zeros(len(places), dtype=torch.bool)
    begins, ends = torch.tensor(places, dtype=torch.long).view(-1, 2).T.contiguous()
    for start, end in spans:
        first = torch.searchsorted(ends, start, right=True)
        scored[first : torch.searchsorted(begins, end) + 1] = True
    return scored


def warn_of_plain_text(text: Text, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warns if a model that chats is calibrated without any conversation."""
    chats = any(isinstance(document, Conversation) for document in text.part("calibration"))
    if tokenizer.chat_template and not chats:
        say(
            f"Warning: the model has a chat template, but text={text.name} is plain text: text=chat"
            " text.path=FILE.jsonl reads conversations."
        )


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
    given = plain(config)
    own = {key: value for key, value in given.pop("training").items() if value is not None}
    del own["more"]  # see `ppf.text.training`
    if given["source"] and "source" in own:
        own["source"] = given["source"] | own["source"]
    return OmegaConf.create({**given, **own})


def mixture(config: DictConfig) -> list[tuple[DictConfig, float]]:
    """The texts of `text.mixture` as `text=` configs, each with its weight; empty: it is none.

    Each is divided into parts as when it is used alone, so its test part stays unread.

    Raises:
        PPFError: an entry names no text.
    """
    found = []
    for entry in config.get("mixture") or ():
        if entry["text"] not in (known := options("text")):
            raise PPFError(f"text.mixture: {entry['text']} is unknown: give one of {[*known]}.")
        text = read_option("text", entry["text"])
        text.update({key: entry[key] for key in ("path", "column") if entry.get(key)})
        text = training_text(text) if "training" in config.windows else text
        found.append((text, entry["weight"]))
    return found


def _blended(texts: list[tuple[dict[str, list[str]], float]]) -> dict[str, list[str]]:
    """The parts of a mixture, whose texts have the shares of their weights, in characters.

    Documents stay whole. The texts follow each other, so that evenly spread windows keep the
    shares too.
    """
    found: dict[str, list[str]] = {}
    for part in dict.fromkeys(name for parts, _ in texts for name in parts):
        found[part] = []
        ends = [[0, *accumulate(map(len, parts.get(part, [])))] for parts, _ in texts]
        scale = min(end[-1] / weight for end, (_, weight) in zip(ends, texts, strict=True))
        for end, (parts, weight) in zip(ends, texts, strict=True):
            nearest = min(range(len(end)), key=lambda i: abs(end[i] - scale * weight))  # noqa: B023
            found[part] += parts.get(part, [])[:nearest]
    return found


def build_text(config: DictConfig, cache: str) -> Text:
    """The text of a `text=` config.

    Args:
        config: has the arguments of `Text`, and `path`, `source`, `column` and `mixture`. If `path`
            is not null, this local file replaces the source. A mixture replaces both.
        cache: folder for cleaned texts.
    """
    given, mixed = plain(config), mixture(config)
    path, source, column = given.pop("path"), given.pop("source"), given.pop("column")
    for key in ("training", "mixture"):  # see `training_text`, `mixture`
        given.pop(key, None)
    if mixed:
        text = Text(**given | {"splits": {}}, documents=list)
        text.parts = _blended([(build_text(one, cache).parts, weight) for one, weight in mixed])
        return text
    if path:
        given["splits"] = local_splits(given["splits"])
        return Text(**given, documents=lambda split: read_file(path, column))
    if source["_target_"] == "ppf.text.corpora.wikipedia_sample":
        source["cache"] = cache
    return Text(**given, documents=instantiate(source, _partial_=True, _convert_="all"))
