"""Number format and memory of training on a CPU."""

import torch

from ppf.recovery.computing import call_rounded
from tests.checkpoints import CHECKPOINTS, random_model, random_windows


def test_gradients_of_rounded_copies_reach_the_parameters() -> None:
    model = random_model(CHECKPOINTS["llama-biases"]).model.get_decoder().requires_grad_(True)
    ids = random_windows()
    plain = model(ids).last_hidden_state
    slope = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(plain, [*model.parameters()], slope)
    with torch.autocast("cpu", torch.bfloat16):
        output = call_rounded(model, ids).last_hidden_state
    assert output.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa"
    found = torch.autograd.grad(output.float(), [*model.parameters()], slope)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.2 * other.norm()
