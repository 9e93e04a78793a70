from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppf.runtime import DecodingBatch
from ppf.runtime.decoding import multiply_vectors
from tests.checkpoints import CHECKPOINTS, policies, pruner_of, random_model


def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the products with vectors, as they are computed from now on."""
    found: list[str] = []

    def recorded(name: str, original: Callable) -> Callable:
        def product(*tensors: Tensor) -> Tensor:
            found.append(name)
            return original(*tensors)

        return product

    for name in ("mv", "addmv"):
        monkeypatch.setattr(torch, name, recorded(name, getattr(torch, name)))
    return found


@pytest.mark.parametrize("name", ["llama-biases", "gpt-neox-32-heads-untied"])
def test_single_tokens_are_multiplied_as_vectors_at_every_policy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS[name]))
    pruner.lm.model.to(torch.bfloat16)
    pruner = pruner_of(pruner.lm)
    kept = policies(pruner.space)["random"]
    ids = torch.arange(6)
    logits = []
    for quick in (False, True):
        if quick:
            multiply_vectors(pruner.lm.model)
        with pruner.at(kept) as model:
            batch = DecodingBatch(model)
            batch.join(ids, 1)
            used = products(monkeypatch)
            logits.append(batch.step([7]))
            assert bool(used) == quick
            batch.join(ids, 1)
            used.clear()
            batch.step([7, 8])
            assert not used, "two sequences are a matrix"
    torch.testing.assert_close(logits[1], logits[0], atol=0.05, rtol=0.05)


def test_float32_and_layers_of_other_classes_stay_as_they_are() -> None:
    model = random_model(CHECKPOINTS["llama-biases"]).model
    multiply_vectors(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert isinstance(model.lm_head, nn.Linear)
