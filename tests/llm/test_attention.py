import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig

from ppf.llm.attention import causal, fast_attention
from tests.checkpoints import CHECKPOINTS, each, random_model, random_windows


@pytest.mark.parametrize("window", [1, 63, 64, 200])
@pytest.mark.parametrize("heads", [2, 6])
def test_causal_attention_and_its_gradients_equal_pytorchs(window: int, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, h, window, 16, generator=generator) for h in (heads, 2, 2, heads)]
    *inputs, slope = (tensor.requires_grad_() for tensor in given)
    expected = scaled_dot_product_attention(*inputs, is_causal=True, scale=0.3, enable_gqa=True)
    found = causal(*inputs, 0.3)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, inputs, slope)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, slope), wanted)


def test_models_with_dropout_keep_their_attention_in_training() -> None:
    config = CHECKPOINTS["llama-biases"]
    model, ids = random_model(config).model.bfloat16().train(), random_windows()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.manual_seed(0)
    expected = model(ids).logits
    with fast_attention(model):
        torch.manual_seed(0)
        assert torch.equal(model(ids).logits, expected)


@each("config", [name for name in CHECKPOINTS if "gpt-oss" not in name])  # never sdpa
def test_fast_attention_gives_the_same_logits(config: PreTrainedConfig) -> None:
    lm, ids = random_model(config), random_windows()
    for coupling in lm.couplings:
        if coupling.kind == "experts":  # rounding must not change which experts a token chooses
            coupling.parent.mlp.top_k = coupling.atoms
    model = lm.model.bfloat16()
    usual = model.config._attn_implementation
    with torch.inference_mode():
        expected = model(ids).logits.float()
        with fast_attention(model):
            assert model.config._attn_implementation != usual
            found = model(ids).logits.float()
    assert model.config._attn_implementation == usual
    assert (found - expected).norm() < 0.03 * expected.norm()
