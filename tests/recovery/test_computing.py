"""Number format and memory of training on a CPU."""

import platform
import resource

import pytest
import torch
from torch import nn

from ppf.recovery.computing import call_rounded, reusing_memory


def test_gradients_of_rounded_copies_reach_the_parameters() -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    expected = torch.autograd.grad(linear(inputs).square().sum(), [*linear.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        output = call_rounded(linear, inputs.bfloat16())
    assert output.dtype == torch.bfloat16
    found = torch.autograd.grad(output.float().square().sum(), [*linear.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)


def test_without_autocast_a_module_is_called_as_it_is() -> None:
    linear, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    assert torch.equal(call_rounded(linear, inputs), linear(inputs))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="options of glibc's malloc")
def test_freed_memory_is_reused_only_inside_the_context() -> None:
    with reusing_memory():
        _faults()
        reused = _faults()
    assert 10 * reused < _faults()


def _faults() -> int:
    """Page faults that a tensor of 64 MiB causes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
