"""Adapters that every policy shares: off when dense, sliced when pruned, the same when merged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from ppf.errors import PPFError
from ppf.pruning import LivePruner, elastic
from ppf.pruning.elastic import ADAPTERS, Adapters, projections
from tests.tiny import TinySetup

ORIGIN = {"compensation": "LeastSquares", "labels": "0123"}


def filled(pruner: LivePruner) -> Adapters:
    adapters = Adapters(pruner, rank=3, scale=2.0).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for pair in adapters.pairs.values():
        pair.up.normal_(0, 0.05, generator=generator)
    return adapters


def half(pruner: LivePruner) -> list[int]:
    return [site.units // 2 for site in pruner.space.sites]


@torch.inference_mode()
def logits(tiny: TinySetup, kept: list[int]) -> Tensor:
    assert tiny.last is not None
    with tiny.last.at(kept) as model:
        return model(tiny.windows).logits


def test_the_dense_output_stays_to_the_bit(tiny: TinySetup) -> None:
    pruner = tiny.pruner()
    dense = pruner.space.dense.tolist()
    before, pruned = logits(tiny, dense), logits(tiny, half(pruner))
    Adapters(pruner, rank=3, scale=2.0)
    assert torch.equal(logits(tiny, half(pruner)), pruned), "new adapters change nothing"
    adapters = filled(pruner)
    assert torch.equal(logits(tiny, dense), before)
    assert not torch.equal(logits(tiny, half(pruner)), pruned)
    pruner.apply(dense)
    with adapters.merged(), torch.inference_mode():
        assert torch.equal(pruner.lm.model(tiny.windows).logits, before)


@pytest.mark.parametrize("empty", [False, True])
def test_a_policy_uses_the_first_rows_and_columns_of_the_change(
    tiny: TinySetup, empty: bool
) -> None:
    pruner = tiny.pruner()
    kept = [0, 0, *half(pruner)[2:]] if empty else half(pruner)
    adapters = filled(pruner)
    found = logits(tiny, kept)
    pruner.apply(kept)
    expected = {
        name: linear.weight
        + 2.0 * (pair.up @ pair.down)[: linear.weight.shape[0], : linear.weight.shape[1]]
        for (name, linear), pair in zip(
            projections(pruner).items(), adapters.pairs.values(), strict=True
        )
    }
    with adapters.merged():
        for name, linear in projections(pruner).items():
            torch.testing.assert_close(linear.weight, expected[name])
        with torch.inference_mode():
            merged = pruner.lm.model(tiny.windows).logits
    torch.testing.assert_close(merged, found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(tiny, kept), found)


@pytest.mark.parametrize(
    ("origin", "content", "sentence"),
    [
        ({**ORIGIN, "labels": "4"}, None, "another labels .0123, not 4.: .* the bank.max_gib"),
        (ORIGIN, b"nothing", "cannot be read"),
        (ORIGIN, save({}, {"labels": "0123"}), "was trained with another compensation"),
        (ORIGIN, save({"x.down": torch.tensor(1.0)}, ORIGIN), "does not fit the model"),
        (ORIGIN, save({"x.down": torch.zeros(10**9, 0)}, ORIGIN), "does not fit the model"),
    ],
)
def test_other_adapters_are_refused(
    tiny: TinySetup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    origin: dict[str, str],
    content: bytes | None,
    sentence: str,
) -> None:
    pruner = tiny.pruner()
    filled(pruner).save(tmp_path, ORIGIN)
    if content:
        (tmp_path / ADAPTERS).write_bytes(content)
    monkeypatch.setattr(elastic, "_Pair", None)  # before memory is taken for a rank
    with pytest.raises(PPFError, match=sentence):
        Adapters.load(tmp_path, pruner, origin)
