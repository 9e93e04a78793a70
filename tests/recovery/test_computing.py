"""Number format, memory and compiled layers of training on a CPU."""

import platform
import resource
from typing import Any

import pytest
import torch
from torch import nn

from ppf.errors import PPFError
from ppf.recovery.computing import call_rounded, compiled, reusing_memory


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, by torch itself
def test_layers_are_compiled_only_inside_the_context() -> None:
    layers = [nn.Linear(2, 2), nn.Linear(2, 3)]
    with compiled(layers, enabled=False):
        assert not any(layer._compiled_call_impl for layer in layers)
    with compiled(layers, enabled=True):
        assert all(layer._compiled_call_impl for layer in layers)
    assert not any(layer._compiled_call_impl for layer in layers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(PPFError, match="needs a C"), compiled([], enabled=True):
        pass


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
