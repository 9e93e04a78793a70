import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from ppf.pruning.rounding import BLOCK_BYTES, rounded

TYPES = ["q8_0", "q5_0", "q4_0"]


def weights(dtype: torch.dtype) -> torch.Tensor:
    """Weights with ties, halves and a block of zeros."""
    drawn = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype).float()
    drawn[0] = 0
    drawn[1, :32] = torch.linspace(-127, 127, 32).mul(2).round() / 2
    drawn[2] = torch.tensor([1.0, -1.0, 0.5]).repeat(32)
    return drawn


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_what_gguf_files_hold(type: str, dtype: torch.dtype) -> None:
    weight, kind = weights(dtype), GGMLQuantizationType[type.upper()]
    stored = quantize(weight.numpy(), kind)
    expected = torch.from_numpy(dequantize(stored, kind).astype(np.float32))
    found = rounded(weight, type)
    assert torch.equal(found, expected)
    assert torch.equal(rounded(found, type), found)
    assert stored.nbytes == weight.numel() // 32 * BLOCK_BYTES[type]
    assert rounded(weight.to(dtype), type).dtype == dtype
