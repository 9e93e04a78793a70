from typing import Any

import pytest
import torch
from torch import Tensor

import ppf.runtime.batch
from ppf.pruning.compensation import Bias
from ppf.runtime import DecodingBatch, DynamicModel
from tests.checkpoints import CHECKPOINTS, each, policies, pruner_of, random_model

PROMPTS = [torch.tensor(ids) for ids in ([5], [6, 7, 8, 9], [3, 2, 1, 9, 8, 7, 6])]


def greedy(batch: DecodingBatch, prompts: list[Tensor], tokens: int) -> list[list[int]]:
    rows = [[int(batch.join(ids, 1).argmax())] for ids in prompts]
    for _ in range(tokens - 1):
        step(batch, rows)
    return rows


def step(batch: DecodingBatch, rows: list[list[int]]) -> None:
    """Appends the likeliest next token to each row."""
    for row, logits in zip(rows, batch.step([row[-1] for row in rows]), strict=True):
        row.append(int(logits.argmax()))


@each("name")
def test_rows_have_the_tokens_that_they_have_alone_in_every_family_and_policy(name: str) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS[name]), Bias())
    named = policies(pruner.space)
    for kept in (named[name] for name in ("random", "first attention empty", "no attention")):
        with pruner.at(kept) as model, torch.inference_mode():
            for ids, found in zip(PROMPTS, greedy(DecodingBatch(model), PROMPTS, 4), strict=True):
                whole = ids.tolist()
                for token in found:
                    logits = model(torch.tensor([whole]), use_cache=False).logits[0, -1]
                    assert float(logits[token]) == pytest.approx(float(logits.max()), abs=1e-3)
                    whole.append(token)


def test_sequences_join_and_leave_between_two_tokens(model: DynamicModel) -> None:
    lm = model.lm.model
    model.set_ratio(0.4)
    expected = [greedy(DecodingBatch(lm), [ids], 9)[0] for ids in PROMPTS]
    batch = DecodingBatch(lm)
    rows = greedy(batch, PROMPTS[2:], 3)
    rows += [[int(batch.join(ids, 1).argmax())] for ids in PROMPTS[:2]]
    step(batch, rows)
    batch.keep([1, 2])  # the longest leaves, and its padding with it
    ended, *rows = rows
    assert ended == expected[2][:4]
    for _ in range(7):
        step(batch, rows)
    assert rows == expected[:2]
    batch.keep([])
    assert greedy(batch, PROMPTS[:1], 9) == expected[:1]


def test_the_batch_stays_whole_if_a_prompt_does_not_fit_into_memory(
    model: DynamicModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model.lm.model
    expected = greedy(DecodingBatch(lm), PROMPTS[2:], 6)
    batch = DecodingBatch(lm)
    rows = greedy(batch, PROMPTS[2:], 3)
    padded, calls = ppf.runtime.batch._padded, []

    def out_of_memory(*given: Any) -> Tensor:
        calls.append(given)
        if len(calls) == 6:  # in the second layer
            raise torch.OutOfMemoryError
        return padded(*given)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr("ppf.runtime.batch._padded", out_of_memory)
        batch.join(PROMPTS[1], 1)
    for _ in range(3):
        step(batch, rows)
    assert rows == expected
