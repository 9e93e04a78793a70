"""How windows of tokens begin, and how long they may be."""

from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ppf.errors import PPFError


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer itself puts before every text: BOS for Gemma and Llama, or none.

    A tokenizer can have a BOS token and not add it (SmolLM2), so only its output tells.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]


def begin_with(
    leading: list[int], windows: Int[Tensor, "windows text"]
) -> Int[Tensor, "windows window"]:
    """Puts the same ids before every window."""
    first = torch.tensor(leading, dtype=windows.dtype).expand(len(windows), -1)
    return torch.cat([first, windows], 1)


def check_window(window: int, config: PreTrainedConfig, override: str = "text.window") -> None:
    """Refuses windows that are longer than the positions that a model knows.

    Args:
        window: in tokens.
        override: the setting to lower.

    Raises:
        PPFError: the window is longer than `max_position_embeddings`.
    """
    positions = getattr(config, "max_position_embeddings", None) or window
    if window > positions:
        raise PPFError(
            f"{override}={window} exceeds the model's {positions} positions: lower {override}."
        )
