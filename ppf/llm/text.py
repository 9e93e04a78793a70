"""Texts in three disjoint parts: calibration, labelling, test."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppf.errors import PPFError
from ppf.llm.text_file import read_file
from ppf.llm.windows import begin_with, leading_tokens

Part = Literal["calibration", "labelling", "test"]


@dataclass
class Text:
    """Documents dealt to three parts, cut into windows of tokens.

    Args:
        splits: source split → the parts that its documents are dealt to, with the share of each.
        documents: split → documents (`ppf.llm.corpora`).
        window: tokens in a window; windows do not overlap.
        windows: how many windows each part has; None takes all. They are spread evenly over the
            part, so that few windows still see many documents.
        seed: of the deal.
        bos: where the tokens stand that a tokenizer puts before every text (BOS for Gemma and
            Llama): "window", at the start of every window, as part of its length; "stream", once,
            before the first window of a part. A window's first token is never scored.

    Raises:
        PPFError: a number or `bos` has no meaning.
    """

    name: str
    splits: dict[str, dict[Part, float]]
    documents: Callable[[str], Sequence[str]]
    window: int
    windows: dict[Part, int | None]
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
        """The documents of each part."""
        parts: dict[str, list[str]] = {}
        for split, shares in self.splits.items():
            documents = [d for d in self.documents(split) if d.strip()]
            random.Random(self.seed).shuffle(documents)
            for part in shares:
                low, high = spans(self.splits, part)[split]
                chosen = slice(round(len(documents) * low), round(len(documents) * high))
                parts.setdefault(part, []).extend(documents[chosen])
        return parts

    def leading(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids that every window of this text begins with."""
        return leading_tokens(tokenizer) if self.bos == "window" else []

    def stream(self, part: Part, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " tokens"]:
        """All tokens of one part, its documents one after another, without `leading`."""
        joined, special = "\n\n".join(self.parts[part]), self.bos == "stream"
        ids = tokenizer(joined, add_special_tokens=special, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def tokens(
        self, part: Part, tokenizer: PreTrainedTokenizerBase
    ) -> Int[Tensor, "windows window"]:
        """The windows of one part.

        Raises:
            PPFError: the part has too little text.
        """
        ids, leading = self.stream(part, tokenizer), self.leading(tokenizer)
        size = self.window - len(leading)
        available = len(ids) // size
        wanted = self.windows[part] or max(available, 1)
        if available < wanted:
            raise PPFError(
                f"the {part} part of text={self.name} has {available} windows of {self.window}"
                f" tokens, not {wanted}: lower text.windows.{part} or text.window, or give a longer"
                " text."
            )
        chosen = torch.linspace(0, available - 1, wanted).round().long()
        return begin_with(leading, ids[: available * size].view(available, size)[chosen])


def spans(splits: Mapping[str, Mapping[Part, float]], part: str) -> dict[str, tuple[float, float]]:
    """The documents that a part takes of each split, as a range between 0 and 1."""
    found = {}
    for split, shares in splits.items():
        reached = 0.0
        for name, share in shares.items():
            low, reached = reached, reached + share
            if name == part:
                whole = sum(shares.values())
                found[split] = (low / whole, reached / whole)
    return found


def local_splits() -> dict[str, dict[Part, float]]:
    """How the documents of a local file are dealt to the parts."""
    return {"all": {"calibration": 0.25, "labelling": 0.25, "test": 0.5}}


def default_text() -> DictConfig:
    """The config of the default text."""
    config = OmegaConf.load(str(files("ppf.conf") / "text" / "wikipedia_sample.yaml"))
    assert isinstance(config, DictConfig)
    return config


def build_text(config: DictConfig, cache: str) -> Text:
    """The text that a `text=` config names; `path` (a local file) stands in for its source.

    Args:
        cache: where cleaned corpora are kept.
    """
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    plain = {str(key): value for key, value in container.items()}
    path, source, column = plain.pop("path"), plain.pop("source"), plain.pop("column")
    if path:
        plain["splits"] = local_splits()
        plain["name"] = Path(path).name
        return Text(**plain, documents=lambda split: read_file(path, column))
    if source["_target_"] == "ppf.llm.corpora.wikipedia_sample":
        source["cache"] = cache
    return Text(**plain, documents=instantiate(source, _partial_=True, _convert_="all"))
