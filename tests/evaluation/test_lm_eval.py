"""Our nats are those of lm-evaluation-harness's rolling log-likelihood on the same text."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ppf.evaluation.perplexity import Piece, pieces_nll, sliding
from ppf.evaluation.tasks import _without_script_folder
from ppf.llm import LanguageModel
from ppf.llm.sources import byte_tokenizer
from ppf.text.windows import leading_tokens
from tests.checkpoints import CHECKPOINTS, bos_tokenizer, random_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TEXT = "".join(chr(97 + i * i % 23) for i in range(120))


@pytest.fixture
def lm() -> LanguageModel:
    return random_model(CHECKPOINTS["llama-groups-of-3-tied"])


@pytest.fixture(params=[byte_tokenizer, bos_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.param()


@pytest.fixture(autouse=True)
def harness() -> Iterator[None]:
    with _without_script_folder():
        yield


def rolling(lm: LanguageModel, tokenizer: Any, texts: list[str], length: int) -> list[float]:
    """The harness's nats of each text; its own prefix token is the only one before a text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(
        pretrained=lm.model,
        tokenizer=tokenizer,
        max_length=length,
        add_bos_token=False,
        prefix_token_id=0,
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    return [-nats for nats in harness.loglikelihood_rolling(requests, disable_tqdm=True)]


def nats(lm: LanguageModel, pieces: list[Piece]) -> float:
    return pieces_nll(lm.model, pieces, batch=4) * sum(piece.scored for piece in pieces)


def ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    return torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])


def test_windows_that_begin_with_bos_are_the_harnesss_texts(lm: LanguageModel) -> None:
    tokenizer = bos_tokenizer()
    leading = leading_tokens(tokenizer)
    pieces = sliding(ids(tokenizer), window=33, stride=33, leading=leading)
    texts = [TEXT[start : start + 32] for start in range(0, len(TEXT), 32)]
    assert sum(len(piece.windows) for piece in pieces) == len(texts) == 4
    assert nats(lm, pieces) == pytest.approx(sum(rolling(lm, tokenizer, texts, 33)), rel=1e-5)


def test_one_stream_behind_the_prefix_is_the_harnesss_whole_text(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    stream = torch.cat([torch.tensor([0]), ids(tokenizer)])
    pieces = sliding(stream, window=31, stride=30)  # 30 divides the text's 120 tokens
    (expected,) = rolling(lm, tokenizer, [TEXT], 30)
    assert nats(lm, pieces) == pytest.approx(expected, rel=1e-5)
