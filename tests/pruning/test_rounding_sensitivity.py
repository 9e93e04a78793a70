import pytest
import torch
from omegaconf import OmegaConf

from ppf.conf import read_option
from ppf.llm import load
from ppf.llm.nll import draw
from ppf.pruning import sensitivity
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.rounding import rounded
from ppf.pruning.rounding_sensitivity import rounding_sensitivity
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, random_windows
from tests.pretended_gpu import pretended_gpus

CONFIG = CHECKPOINTS["llama-groups-of-3-tied"]


def test_without_rounding_the_losses_are_those_of_pruning() -> None:
    lm, windows = random_model(CONFIG), random_windows()
    for parameter in lm.model.parameters():
        parameter.copy_(parameter.half())
    pruner = pruner_of(lm, LeastSquares(damping=0.01, refit_damping=0.1), query_heads=False)
    weights = [parameter.clone() for parameter in lm.model.parameters()]
    found = rounding_sensitivity(pruner, windows, ["f16", "q4_0"], seed=0)
    expected = sensitivity(pruner, windows, seed=0)
    torch.testing.assert_close(found.losses[:, 0], expected, rtol=1e-4, atol=1e-9)
    assert (found.noise[:, 0] < 1e-9).all() and (found.noise[:, 1] > 1e-4).all()
    dense = range(len(pruner.space)), pruner.space.units
    assert (found.losses[:, 1][dense] > 0).all()
    for now, before in zip(lm.model.parameters(), weights, strict=True):
        assert torch.equal(now, before)


def test_emptying_a_site_in_front_of_a_norm_counts() -> None:
    lm, windows = random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]), random_windows()
    pruner = pruner_of(lm, query_heads=False)
    expected = sensitivity(pruner, windows, seed=0)[:, 0]
    found = rounding_sensitivity(pruner, windows, ["f16", "q4_0"], seed=0).losses[:, :, 0]
    assert (expected > 0.1).all()
    torch.testing.assert_close(found, expected[:, None].expand(-1, 2))


def test_losses_are_of_what_pruning_and_rounding_change_together() -> None:
    lm, windows = random_model(CONFIG), random_windows()
    pruner = pruner_of(lm, query_heads=False)
    found = rounding_sensitivity(pruner, windows, ["q4_0"], seed=0).losses[-1, 0]
    mlp, site, seen = pruner.blocks[-1], pruner.space.sites[-1], dict[str, torch.Tensor]()

    def cut(_: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return seen.setdefault("output", output.detach().requires_grad_())

    mlp.register_forward_pre_hook(lambda _, inputs: seen.update(hidden=inputs[0][0]))
    mlp.down_proj.register_forward_hook(cut)
    gate, up, down = (
        rounded(getattr(mlp, name).weight, "q4_0") for name in ("gate_proj", "up_proj", "down_proj")
    )
    generator, expected = torch.Generator().manual_seed(0), torch.zeros_like(found)
    for window in windows:
        seen.clear()
        logits = lm.model(window[None]).logits[0]
        drawn = draw(logits.detach().softmax(-1), generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
        output = seen["output"]
        inner = torch.nn.functional.silu(seen["hidden"] @ gate.T) * (seen["hidden"] @ up.T)
        for level in range(site.units + 1):
            width = level * site.atoms_per_unit
            change = output[0].detach() - inner[:, :width] @ down[:, :width].T
            expected[level] += (change * output.grad[0]).sum(1).square().sum() / 2
    torch.testing.assert_close(found, expected / windows.numel(), rtol=1e-3, atol=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
def test_sites_may_lie_on_several_gpus(cache: str) -> None:
    config = OmegaConf.merge(read_option("model", "tiny"), {"device_map": "auto"})
    with pretended_gpus(2):
        pruner = pruner_of(load(config, cache, device="cuda"), query_heads=False)
        found = rounding_sensitivity(pruner, random_windows(), ["q4_0"], seed=0)
    assert found.losses.isfinite().all() and found.losses.any()
