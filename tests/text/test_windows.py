import torch

from ppf.llm.sources import byte_tokenizer
from ppf.text.windows import begin_with, leading_tokens
from tests.checkpoints import bos_tokenizer


def test_leading_tokens_are_those_that_the_tokenizer_adds() -> None:
    silent = byte_tokenizer()
    silent.bos_token = silent.eos_token  # has a BOS token but does not add it, as SmolLM2
    assert leading_tokens(silent) == leading_tokens(byte_tokenizer()) == []
    assert leading_tokens(bos_tokenizer()) == [0]


def test_every_window_begins_with_the_leading_tokens() -> None:
    windows = torch.arange(1, 7).view(2, 3)
    assert begin_with([0], windows).tolist() == [[0, 1, 2, 3], [0, 4, 5, 6]]
    assert torch.equal(begin_with([], windows), windows)
