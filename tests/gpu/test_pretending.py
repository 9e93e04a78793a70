"""The tool itself: it finds wrong operations, and lets right ones pass."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.pretended_gpu import pretended_gpus

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
WRONG = {
    "sum": lambda cpu, gpu: cpu + gpu,
    "in-place": lambda cpu, gpu: cpu.add_(gpu),
    "number-on-gpu": lambda cpu, gpu: cpu * gpu[0],
    "stack-of-numbers": lambda cpu, gpu: torch.stack([cpu[0], gpu[0]]),
    "index-on-gpu": lambda cpu, gpu: cpu[gpu.long()],
    "linear": lambda cpu, gpu: nn.Linear(3, 2, device="cuda")(cpu),
    "numpy": lambda cpu, gpu: gpu.numpy(),
    "generator": lambda cpu, gpu: torch.rand(3, generator=torch.Generator("cuda")),
    "other-gpu": lambda cpu, gpu: gpu + gpu.to("cuda:1"),
    "thread": lambda cpu, gpu: ThreadPoolExecutor(1).submit(lambda: cpu + gpu).result(),
    "backward": lambda cpu, gpu: _CpuGradient.apply(gpu.requires_grad_()).sum().backward(),
}
RIGHT = {
    "moved": lambda cpu, gpu: cpu.to(gpu) + gpu,
    "number-on-cpu": lambda cpu, gpu: gpu * cpu[0],
    "index-on-cpu": lambda cpu, gpu: gpu[cpu.long()],
    "made-there": lambda cpu, gpu: gpu + torch.arange(3, device="cuda") + torch.zeros_like(gpu),
    "one-hot": lambda cpu, gpu: nn.functional.one_hot(gpu.long(), 3) @ gpu.long(),
    "module": lambda cpu, gpu: copy.deepcopy(nn.Linear(3, 2)).to("cuda")(gpu),
    "parameter": lambda cpu, gpu: nn.Parameter(gpu) + gpu,
    "vmap": lambda cpu, gpu: torch.func.vmap(lambda x: x.to("cuda") * gpu[1])(gpu),
}


class _CpuGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] * torch.ones(3)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_operation_is_an_error_with_its_place(wrong: str) -> None:
    caught = pytest.raises(AssertionError, match=r"cuda:0.* at a test")
    with caught, pretended_gpus(2), pytest.raises(RuntimeError, match="on the same device"):
        WRONG[wrong](torch.ones(3), torch.ones(3, device="cuda"))


@pytest.mark.parametrize("right", RIGHT)
def test_a_right_operation_passes(right: str) -> None:
    with pretended_gpus():
        found = RIGHT[right](torch.ones(3), torch.ones(3, device="cuda"))
        assert found.device == torch.device("cuda:0") and found[:1].is_cuda
    assert torch.ones(1).device.type == "cpu" and not torch.cuda.is_initialized()


def test_gradients_go_back_to_the_device_of_their_tensor() -> None:
    with pretended_gpus(2):
        weight = torch.ones(3, device="cuda:1", requires_grad=True)
        (weight.to("cuda:0") * 2).sum().backward()
        assert weight.grad is not None and weight.grad.device == weight.device
