"""Mixtures of experts compute what transformers computes, and prune whole experts."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ppf.export import Pruned, smallest
from ppf.export.files import exported_files
from ppf.export.huggingface import HuggingFace
from ppf.llm import adapter_for
from ppf.llm.experts import Experts
from ppf.pruning import statistics
from ppf.pruning.compensation import Bias, LeastSquares
from ppf.pruning.costs import Flops, KVCache
from ppf.pruning.importance import REAP, Frequency
from ppf.pruning.sequential import refit_sequentially
from ppf.pruning.statistics import block_energies, blocks_of
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, random_weights, random_windows
from tests.export.conftest import POLICY
from tests.observing import collect_statistics, score_atoms

WORDS = "moe", "mixtral", "gpt-oss"
MIXTURES = [name for name in CHECKPOINTS if any(word in name for word in WORDS)]
mixture = pytest.mark.parametrize("name", MIXTURES)


@mixture
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_logits_are_those_of_transformers(name: str, implementation: str) -> None:
    model, ids = random_weights(CHECKPOINTS[name]), random_windows()
    model.set_experts_implementation(implementation)
    expected = model(ids).logits
    adapter_for(model.config).with_projections(model)
    assert any(isinstance(module, Experts) for module in model.modules())
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


def test_only_chosen_experts_are_multiplied() -> None:
    block = random_model(CHECKPOINTS["mixtral-untied"]).model.model.layers[0].mlp
    x = torch.randn(2, 96)
    chosen = block._weights(block.router(x)) > 0
    assert chosen.sum(1).tolist() == [2, 2]
    expected = block(x)
    used = chosen.any(0)
    block.gate_up.weight.data.unflatten(0, (5, -1))[~used] = torch.nan
    block.down.weight.data.unflatten(1, (5, -1))[:, ~used] = torch.nan
    assert torch.equal(block(x), expected)


def test_gradients_equal_those_of_transformers() -> None:
    model = random_weights(CHECKPOINTS["mixtral-untied"])
    model.set_experts_implementation("eager")
    other = copy.deepcopy(model)
    adapter_for(model.config).with_projections(other)
    states = torch.randn(2, 7, 96)
    inputs = [states.clone().requires_grad_() for _ in range(2)]
    for x, made in zip(inputs, (model, other), strict=True):
        made.model.layers[0].mlp(x).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)


def test_experts_compute_in_other_number_formats() -> None:
    block = random_model(CHECKPOINTS["mixtral-untied"]).model.model.layers[0].mlp
    x = torch.randn(2, 7, 96)
    wide = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # as in recovery
        found = block(wide)
    found.sum().backward()
    assert wide.grad.isfinite().all()
    torch.testing.assert_close(found.float(), block(x), rtol=0.1, atol=0.1)
    assert block.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_a_token_uses_all_experts_if_fewer_are_left_than_it_chooses() -> None:
    lm, ids = random_model(CHECKPOINTS["mixtral-untied"]), random_windows()
    pruner = pruner_of(lm)
    one = [1 if site.kind == "experts" else site.units for site in pruner.space.sites]
    with pruner.at(one) as model:
        block, x = model.model.layers[0].mlp, torch.randn(3, 96)
        gate_up = torch.nn.functional.linear(x, block.gate_up.weight)
        expected = torch.nn.functional.linear(block.activation(gate_up), block.down.weight)
        torch.testing.assert_close(block(x), expected)
        assert model(ids).logits.isfinite().all()


def test_experts_save_parameters_only() -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["mixtral-untied"]), query_heads=False)
    for cost in (Flops(context=16), KVCache()):
        prices = zip(pruner.space.sites, cost.prices(pruner), strict=True)
        assert all((price == 0) == (site.kind == "experts") for site, price in prices)


def test_a_stock_folder_has_one_tensor_for_each_expert(tmp_path) -> None:
    lm = random_model(CHECKPOINTS["mixtral-untied"])
    pruner = pruner_of(lm, query_heads=False)
    pruner.apply([2, 1] * 3)
    folder = HuggingFace().write(smallest(Pruned.of(pruner), {}), tmp_path, POLICY)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if ".0.block_sparse_moe." in name}  # noqa: SIM118
    start = "model.layers.0.block_sparse_moe"
    expected = {f"{start}.experts.0.w{number}.weight" for number in (1, 2, 3)}
    assert names == expected | {f"{start}.gate.weight"}
    assert '"num_experts_per_tok": 1' in (folder / "config.json").read_text()


def test_the_code_of_experts_is_exported_with_uneven_models(tmp_path) -> None:
    lm = random_model(CHECKPOINTS["mixtral-untied"])
    pruner = pruner_of(lm, LeastSquares(0.1, 0.1))
    pruner.apply([2, 1, 2, 3, 2, 5])
    HuggingFace().write(Pruned.of(pruner), tmp_path, POLICY)
    assert (tmp_path / "experts.py").is_file()
    assert exported_files(tmp_path) == sorted(tmp_path.iterdir())  # all of them are uploaded
    assert "`experts.py`" in (tmp_path / "README.md").read_text()


@mixture
def test_reap_scores_an_expert_by_what_it_adds_to_its_tokens(name: str) -> None:
    lm, windows = random_model(CHECKPOINTS[name]), random_windows()
    (first, *_) = (i for i, c in enumerate(lm.couplings) if c.kind == "experts")
    coupling, seen = lm.couplings[first], list[torch.Tensor]()
    importance, statistics = REAP(), collect_statistics(lm, windows)
    scores = score_atoms(lm, importance, statistics, windows)[first]
    coupling.consumer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        lm.model(windows)
    for expert, score in enumerate(scores.tolist()):
        part = slice(expert * coupling.columns, (expert + 1) * coupling.columns)
        norms = (seen[0][:, part] @ coupling.consumer.weight[:, part].T).norm(dim=1)
        assert score == pytest.approx(float(norms[norms > 0].mean()), rel=1e-4)


def test_frequency_counts_the_tokens_of_an_expert() -> None:
    lm, windows = random_model(CHECKPOINTS["mixtral-untied"]), random_windows()
    scores = score_atoms(lm, Frequency(), collect_statistics(lm, windows), windows)
    for coupling, score in zip(lm.couplings, scores, strict=True):
        if coupling.kind == "experts":
            assert score.sum() == 2 * windows.numel() and (score > 0).sum() > 1  # top 2


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mixture counts as large."""
    monkeypatch.setattr(statistics, "_WIDEST", 0)


def test_a_large_mixture_has_the_moments_of_each_expert(request: pytest.FixtureRequest) -> None:
    lm, windows = random_model(CHECKPOINTS["gpt-oss-experts-only"]), random_windows()
    whole = collect_statistics(lm, windows)
    request.getfixturevalue("blocks")
    parts = collect_statistics(lm, windows)
    for coupling, gram, blocks in zip(lm.couplings, whole.gram, parts.gram, strict=True):
        own = gram.unflatten(0, (6, -1)).unflatten(2, (6, -1)).diagonal(dim1=0, dim2=2)
        torch.testing.assert_close(blocks, own.permute(2, 0, 1))
        assert blocks_of(coupling) == blocks.shape[:2]
        assert blocks_of(replace(coupling, consumer=nn.Linear(1, 1))) == blocks.shape[:2]  # pruned
    consumer, mean, size = lm.couplings[0].consumer, whole.mean[0], lm.couplings[0].columns
    given = consumer.weight, parts.gram[0], mean, [0, 5 * size]
    made = Bias().levels(*given)
    assert LeastSquares(0.1, 0.1).levels(*given).biases is None
    last = consumer.weight[:, 5 * size :]
    bias = last @ mean[5 * size :]
    lost = ((last @ parts.gram[0][5]) * last).sum() - bias.square().sum()
    error = lost / block_energies(consumer.weight, parts.gram[0]).sum()
    torch.testing.assert_close(made.errors[1], error.float())
    torch.testing.assert_close(made.biases[1], bias)


def test_a_large_mixture_gets_biases_that_bring_its_stream_nearer(blocks: None) -> None:
    lm, windows = random_model(CHECKPOINTS["mixtral-untied"]), random_windows()
    compensation = LeastSquares(0.1, 0.1)
    dense, pruner = lm.model(windows).logits, pruner_of(lm, compensation, query_heads=False)
    pruner.apply([2, 2] * 3)
    weight = lm.couplings[1].consumer.weight.clone()
    before = (lm.model(windows).logits - dense).square().mean()
    refit_sequentially(pruner, windows, windows[:, :1], compensation)
    assert torch.equal(lm.couplings[1].consumer.weight, weight)
    assert (lm.model(windows).logits - dense).square().mean() < before
