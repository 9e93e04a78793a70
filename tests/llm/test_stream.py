"""Layers that run one by one compute what the whole model computes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppf.llm import LanguageModel, LayerStream, backward, differentiate
from tests.checkpoints import CHECKPOINTS, each, random_model, random_windows


def entering_states(lm: LanguageModel, windows: Tensor) -> list[Tensor]:
    """Of each layer, and last what leaves the last layer, before the final norm."""
    seen: list[Tensor] = []
    modules = [*lm.adapter.layers(lm.model), lm.adapter.final_norm(lm.model)]
    hooks = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for m in modules]
    with torch.no_grad():
        lm.model(windows)
    for hook in hooks:
        hook.remove()
    return seen


@each("name")
def test_a_stream_leaves_each_layer_as_in_the_whole_model(name: str) -> None:
    lm, windows = random_model(CHECKPOINTS[name]), random_windows()[:4]
    stream, expected = LayerStream(lm, windows), entering_states(lm, windows)
    for layer in range(len(expected) - 1):
        assert torch.equal(torch.cat(stream.run(layer)), expected[layer + 1])


def test_streams_that_share_a_folder_run_each_layer_once(lm: LanguageModel, tmp_path: Path) -> None:
    runs: list[int] = []
    for number, layer in enumerate(lm.adapter.layers(lm.model)):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    windows = random_windows()[:4]
    one, other = (LayerStream(lm, windows, tmp_path) for _ in range(2))
    states = [one.run(0), other.run(1), one.run(2)]
    assert runs == [0, 1, 2]
    assert torch.equal(torch.cat(states[-1]), entering_states(lm, windows)[-1])
    # What enters the first two layers is not needed any more.
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ["0002.safetensors", "0003.safetensors"]


@pytest.mark.parametrize("small", [2**30, 0], ids=["at once", "checkpointed"])
@each("name")
def test_gradients_are_those_of_the_whole_model(
    name: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "SMALL", small)
    lm, windows = random_model(CHECKPOINTS[name]), random_windows()[:2]

    found: dict[nn.Module, list[Tensor]] = {c.consumer: [] for c in lm.couplings}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(found[module].append)

    for consumer in found:
        consumer.register_forward_hook(hook)
    differentiate(lm, windows, "Differentiating")
    embeddings = lm.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda *call: call[2].requires_grad_())
    log_probs = lm.model(windows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    log_probs.gather(2, windows[:, 1:, None]).sum().neg().backward()
    for *parts, whole in found.values():
        torch.testing.assert_close(torch.cat(parts), whole)
