"""The first tokens of windows, evenly spread windows, and which tokens they may have."""

import math
from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppf.errors import PPFError


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer puts before every text: BOS for Gemma and Llama, none for SmolLM2.

    They are read from the tokenizer's output, since some tokenizers have a BOS token but do not add
    it.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]


def evenly(windows: Int[Tensor, "windows window"], count: int) -> Int[Tensor, "chosen window"]:
    """`count` windows at even distances, or all windows if there are fewer."""
    return windows[even_places(len(windows), min(count, len(windows)))]


def even_places(available: int, count: int) -> Int[Tensor, " count"]:
    """The places of `count` windows at even distances among the available ones."""
    # In float32, the last place of more than 2 ** 24 can be rounded up.
    return torch.linspace(0, available - 1, count, dtype=torch.double).round().long()


def check_embedded(
    ids: Int[Tensor, " tokens"], tokenizer: PreTrainedTokenizerBase, what: str
) -> None:
    """Checks that a model embeds all tokens of a text.

    Args:
        ids: the tokens.
        tokenizer: a result of `read_tokenizer`; of another one, all tokens are accepted.
        what: the text, for error messages.

    Raises:
        PPFError: the text has a special token that the model does not embed.
    """
    if len(foreign := ids[ids >= getattr(tokenizer, "embedded", math.inf)]):
        token = tokenizer.convert_ids_to_tokens(int(foreign[0]))
        raise PPFError(f"{what} has the token {token}, which the model does not embed: remove it.")
