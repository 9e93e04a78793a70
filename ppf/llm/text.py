"""Texts in three disjoint parts: calibration, labelling, test."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from ppf.llm import corpora

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
    """

    name: str
    splits: dict[str, dict[Part, float]]
    documents: Callable[[str], Sequence[str]]
    window: int
    windows: dict[Part, int | None]
    seed: int

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

    def stream(self, part: Part, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " tokens"]:
        """All tokens of one part, its documents one after another."""
        joined = "\n\n".join(self.parts[part])
        return torch.tensor(tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"])

    def tokens(
        self, part: Part, tokenizer: PreTrainedTokenizerBase
    ) -> Int[Tensor, "windows window"]:
        """The windows of one part.

        Raises:
            PPFError: the part has too little text.
        """
        ids = self.stream(part, tokenizer)
        available = len(ids) // self.window
        wanted = self.windows[part] or available
        if not available or available < wanted:
            raise PPFError(
                f"the {part} part of text={self.name} has {available} windows of {self.window}"
                f" tokens, not {wanted}: lower text.windows.{part} or text.window, or give a longer"
                " text."
            )
        chosen = torch.linspace(0, available - 1, wanted).round().long()
        return ids[: available * self.window].view(available, self.window)[chosen]


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
        return Text(**plain, documents=partial(corpora.file, path=path, column=column))
    if source["_target_"] == "ppf.llm.corpora.wikipedia_sample":
        source["cache"] = cache
    return Text(**plain, documents=instantiate(source, _partial_=True, _convert_="all"))
