import pytest
import torch

from ppf.llm import LanguageModel
from ppf.pruning import LivePruner, loss_changes, sensitivity
from ppf.pruning.compensation import Bias, Compensation, LeastSquares, NoCompensation
from tests.checkpoints import CHECKPOINTS, FAMILIES, pruner_of, random_model, random_windows

LEAST_SQUARES = LeastSquares(damping=0.01, refit_damping=0.1)
COMPENSATIONS = {"none": NoCompensation(), "bias": Bias(), "least_squares": LEAST_SQUARES}


@pytest.mark.parametrize("compensation", COMPENSATIONS.values(), ids=COMPENSATIONS.keys())
def test_along_equals_the_output_of_the_narrowed_consumer(compensation: Compensation) -> None:
    lm = random_model(CHECKPOINTS["llama-biases"])
    pruner = pruner_of(lm, compensation)
    site = pruner.space.sites[1]
    coupling = lm.couplings[1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, coupling.consumer.in_features, generator=generator)
    direction = torch.randn(7, coupling.consumer.out_features, generator=generator)
    columns = [kept * site.atoms_per_unit * coupling.columns for kept in range(site.units + 1)]
    weight, bias = coupling.consumer.weight.clone(), coupling.consumer.bias.clone()
    levels = pruner.bank.levels[1]
    assert (levels.factors is not None) == compensation.refits
    found = levels.along(direction, x, weight, columns)
    for kept, width in enumerate(columns):
        pruner.narrow(1, kept)
        output = coupling.consumer(x[:, :width]) - bias
        expected = (direction * output).sum(1)
        torch.testing.assert_close(found[:, kept], expected, rtol=1e-3, atol=1e-3)


def with_small_last_site(name: str, scale: float) -> LanguageModel:
    """A random model whose last site adds little to the residual stream."""
    lm = random_model(CHECKPOINTS[name])
    norm = lm.adapter.norm_behind(lm.couplings[-1])
    if norm is None:
        lm.couplings[-1].consumer.weight.mul_(scale)
    else:
        norm.weight.fill_(scale - 1)  # Gemma's norms scale by 1 + weight
    return lm


@pytest.mark.parametrize("name", ["llama-groups-of-3-tied", "gemma3-one-kv-head-tied"])
def test_small_losses_equal_the_divergence_from_the_dense_model(name: str) -> None:
    lm, windows = with_small_last_site(name, 0.05), random_windows()
    last = len(lm.couplings) - 1  # no attention follows it
    pruner = pruner_of(lm)
    expected = torch.stack([sensitivity(pruner, windows, seed)[last] for seed in range(20)]).mean(0)
    kept = pruner.space.dense.tolist()
    with torch.inference_mode():
        dense = lm.model(windows).logits.log_softmax(-1)
        with pruner.at([*kept[:last], 0]) as model:
            pruned = model(windows).logits.log_softmax(-1)
    divergence = float((dense.exp() * (dense - pruned)).sum(-1).mean())
    assert float(expected[0]) == pytest.approx(divergence, rel=0.15)


# Norms have a test of their own; estimates leave out that tokens use other experts.
ADDITIVE = {n: c for n, c in FAMILIES.items() if not n.startswith(("gemma3", "mixtral"))}


def loss(pruner: LivePruner, kept: list[int]) -> float:
    """Of a policy, nats per token of the windows."""
    windows = random_windows()
    with torch.inference_mode(), pruner.at(kept) as model:
        log_probs = model(windows).logits.double().log_softmax(-1)
    return float(-log_probs[:, :-1].gather(2, windows[:, 1:, None]).sum()) / windows.numel()


@pytest.mark.parametrize("config", ADDITIVE.values(), ids=ADDITIVE.keys())
def test_small_changes_of_a_pruned_model_are_those_of_its_loss(config) -> None:
    lm, windows = random_model(config), random_windows()
    last = len(lm.couplings) - 1
    lm.couplings[last].consumer.weight.mul_(1e-3)  # makes its changes small
    pruner = pruner_of(lm)
    kept = [max(site.units // 2, 1) for site in pruner.space.sites]
    changes = loss_changes(pruner, kept, windows, cap=100.0)[last]
    assert changes[kept[last]] == 0 and pruner.kept == pruner.space.dense.tolist()

    levels = range(pruner.space.sites[last].units + 1)
    losses = torch.tensor([loss(pruner, [*kept[:last], units]) for units in levels])
    measured = losses - losses[kept[last]]
    scale = float(measured.abs().max())
    torch.testing.assert_close(changes[: len(levels)], measured, rtol=0, atol=0.05 * scale)


@pytest.mark.parametrize("empty", [True, False])
def test_a_site_in_front_of_a_norm_is_emptied_and_restored(empty: bool) -> None:
    lm, windows = with_small_last_site("gemma3-one-kv-head-tied", 1e-3), random_windows()
    pruner = pruner_of(lm)
    half = [max(site.units // 2, 1) for site in pruner.space.sites]
    dense = pruner.space.sites[-1].units
    present, other = (0, dense) if empty else (dense, 0)
    changes = loss_changes(pruner, [*half[:-1], present], windows, cap=100.0)[-1]

    before, after = (loss(pruner, [*half[:-1], units]) for units in (present, other))
    assert changes[present] == 0
    assert float(changes[other]) == pytest.approx(after - before, rel=0.05)
