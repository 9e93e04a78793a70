"""Moments are exact; tensors on disk carry a checksum."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppf.errors import PPFError
from ppf.pruning import Statistics
from ppf.pruning.statistics import damped
from ppf.pruning.tensor_files import read_tensors, write_tensors
from tests.checkpoints import CHECKPOINTS, random_model, random_windows
from tests.observing import NO_TOKENS, collect_statistics
from tests.tiny import TinySetup

TENSORS = {
    "a": torch.arange(6.0).view(2, 3).T,
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.zeros(0),
}


def observed(
    tiny: TinySetup, first: torch.Tensor = NO_TOKENS
) -> tuple[Statistics, list[torch.Tensor]]:
    """The moments, and the inputs of the first FFN's consumer."""
    inputs = list[torch.Tensor]()
    consumer = tiny.lm.couplings[1].consumer
    consumer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    return collect_statistics(tiny.lm, tiny.windows, first), inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_exact_in_every_number_format(tiny: TinySetup, dtype: torch.dtype) -> None:
    tiny.lm.model.to(dtype)
    found, inputs = observed(tiny)
    x = torch.cat(inputs).flatten(0, -2).double()
    expected = x.T @ x / len(x)
    assert (found.gram[1] - expected).abs().max() < 1e-6 * expected.abs().max()
    assert torch.get_float32_matmul_precision() == "highest"


def test_first_tokens_have_a_twentieth_of_the_weight_in_moments(tiny: TinySetup) -> None:
    first = torch.arange(0, 200, 2)[:, None]
    found, inputs = observed(tiny, first)
    windows, alone = (
        torch.cat([x for x in inputs if (x.shape[1] == 1) == single]).double()
        for single in (False, True)
    )
    starts, others = torch.cat([windows[:, 0], alone[:, 0]]), windows[:, 1:].flatten(0, 1)
    assert len(starts) == 108
    mean = 0.05 * starts.mean(0) + 0.95 * others.mean(0)
    gram = 0.05 * starts.T @ starts / len(starts) + 0.95 * others.T @ others / len(others)
    torch.testing.assert_close(found.mean[1].double(), mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.gram[1].double(), gram, atol=1e-6, rtol=1e-5)


def test_a_norm_behind_the_consumer_weights_tokens_by_their_outputs() -> None:
    lm, ids = random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]), random_windows()
    consumer, calls = lm.couplings[3].consumer, list[tuple[torch.Tensor, torch.Tensor]]()
    consumer.register_forward_hook(lambda _, given, output: calls.append((given[0], output)))
    found = collect_statistics(lm, ids)
    x, output = (torch.cat(parts).flatten(0, -2).double() for parts in zip(*calls, strict=True))
    weights = 1 / output.square().mean(1)
    weights /= weights.sum()
    torch.testing.assert_close(found.mean[3].double(), weights @ x, atol=1e-6, rtol=1e-4)
    gram = (weights[:, None] * x).T @ x
    torch.testing.assert_close(found.gram[3].double(), gram, atol=1e-6, rtol=1e-4)


def test_inputs_without_a_window_dimension(tiny: TinySetup) -> None:
    """OPT flattens them."""
    consumer, shapes = tiny.lm.couplings[1].consumer, list[torch.Size]()

    def flatten(module: torch.nn.Module, given: tuple[torch.Tensor]) -> torch.Tensor:
        shapes.append(given[0].shape[:2])
        return given[0].flatten(0, 1)

    def restore(module: torch.nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        return output.unflatten(0, shapes[-1])

    first = torch.arange(0, 200, 2)[:, None]
    weighted = collect_statistics(tiny.lm, tiny.windows, first).gram[1]
    consumer.register_forward_pre_hook(flatten)
    consumer.register_forward_hook(restore)
    found = collect_statistics(tiny.lm, tiny.windows, first).gram[1]
    torch.testing.assert_close(found, weighted)


def test_one_large_column_does_not_set_the_ridge_of_the_others() -> None:
    x = torch.randn(2000, 200, generator=torch.Generator().manual_seed(0))
    _, usual = damped(x.T @ x / 2000, 0.1)
    x[:, 7] *= 1000
    gram, ridge = damped(x.T @ x / 2000, 0.1)
    assert ridge == pytest.approx(float(usual), rel=0.02)
    assert gram.diagonal()[7] > 1e5


def test_activations_that_overflow_are_refused(tiny: TinySetup) -> None:
    tiny.lm.model.half()
    for producer in tiny.lm.couplings[1].producers:
        producer.linear.weight.mul_(1e4)
    with pytest.raises(PPFError, match=r"layer 0 .* in float16.* give model\.dtype=float32"):
        collect_statistics(tiny.lm, tiny.windows)


def test_what_is_written_is_read_but_no_changed_byte(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    whole = (tmp_path / "x").read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "x").write_bytes(changed)
        try:
            found = read_tensors(tmp_path / "x")
        except Exception:
            continue
        # What is left are harmless changes of the header, such as the name of the checksum.
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS), place


def test_files_without_a_checksum_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(tmp_path / "x")
