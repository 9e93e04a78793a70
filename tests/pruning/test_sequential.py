import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppf.errors import PPFError
from ppf.llm import LanguageModel
from ppf.pruning import LivePruner, sequential
from ppf.pruning.compensation import (
    Bias,
    Compensation,
    LeastSquares,
    LeastSquaresWithoutBias,
    NoCompensation,
    ResidualMoments,
    WeightAndBias,
)
from ppf.pruning.sequential import refit_sequentially
from ppf.pruning.statistics import TokenWeights
from tests.checkpoints import CHECKPOINTS, each, policies, pruner_of, random_model, random_windows
from tests.memory import peak_bytes
from tests.observing import NO_TOKENS

LEAST_SQUARES = LeastSquares(damping=0.01, refit_damping=0.01)
WITHOUT_BIAS = LeastSquaresWithoutBias(damping=0.01, refit_damping=0.01)
ADDING = [name for name in CHECKPOINTS if "norms-last" not in name]
form = each("name", ADDING)


def squared(lacking: Tensor) -> Tensor:
    return lacking.square().mean()


def last_states(pruner: LivePruner, ids: Tensor) -> Tensor:
    """Hidden states after the last layer, before the final norm."""
    states: list[Tensor] = []
    last = pruner.lm.adapter.layers(pruner.lm.model)[-1]
    with_hook = last.register_forward_hook(lambda module, inputs, output: states.append(output))
    pruner.lm.model(ids)
    with_hook.remove()
    return states[0]


def test_outputs_that_are_not_added_as_they_are_are_refused() -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["opt-projected-embeddings-norms-last"]))
    with pytest.raises(PPFError, match="sequential=false"):
        refit_sequentially(pruner, random_windows(), NO_TOKENS, LEAST_SQUARES)


@form
def test_the_error_of_the_residual_stream_decreases(name: str) -> None:
    ids, methods = random_windows(), [(LEAST_SQUARES, squared)]
    if name in ("llama-biases", "llama-groups-of-3-tied"):
        methods += [(WITHOUT_BIAS, squared), (Bias(), lambda x: x.mean((0, 1)).abs().max())]
    for compensation, distance in methods:
        pruner = pruner_of(random_model(CHECKPOINTS[name]), compensation)
        dense, drawn = last_states(pruner, ids), policies(pruner.space)
        for policy in ("random", "first attention empty", "no mlp"):
            pruner.apply(drawn[policy])
            before = distance(last_states(pruner, ids) - dense)
            refit_sequentially(pruner, ids, NO_TOKENS, compensation)
            assert pruner.kept == drawn[policy]
            assert distance(last_states(pruner, ids) - dense) < before


@pytest.fixture
def pruner(lm: LanguageModel) -> LivePruner:
    return pruner_of(lm, LEAST_SQUARES)


def test_the_next_policy_undoes_the_refit(pruner: LivePruner) -> None:
    ids, kept = random_windows(), policies(pruner.space)["random"]
    pruner.apply(kept)
    before = pruner.lm.model(ids).logits
    refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES)
    assert not torch.equal(pruner.lm.model(ids).logits, before)
    pruner.apply(kept)
    assert torch.equal(pruner.lm.model(ids).logits, before)


@pytest.mark.parametrize("compensation", [NoCompensation(), LEAST_SQUARES])
def test_nothing_changes_under_the_dense_policy_or_without_compensation(
    pruner: LivePruner, compensation: Compensation
) -> None:
    ids, drawn = random_windows(), policies(pruner.space)
    pruner.apply(drawn["random" if isinstance(compensation, NoCompensation) else "dense"])
    before = pruner.lm.model(ids).logits
    refit_sequentially(pruner, ids, NO_TOKENS, compensation)
    torch.testing.assert_close(pruner.lm.model(ids).logits, before, atol=1e-4, rtol=1e-4)


@form
def test_blocks_that_lack_nothing_stay_as_they_are(name: str) -> None:
    lm, ids = random_model(CHECKPOINTS[name]), random_windows()
    pruner = pruner_of(lm, LEAST_SQUARES)
    kept = [*pruner.space.dense.tolist()[:-1], 1]
    pruner.apply(kept)
    before = [coupling.consumer.weight.clone() for coupling in lm.couplings[:-1]]
    refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES)
    for coupling, weight in zip(lm.couplings, before, strict=False):
        torch.testing.assert_close(coupling.consumer.weight, weight, rtol=0, atol=0.02)


@pytest.mark.parametrize("first", [NO_TOKENS, torch.arange(200)[:, None]])
def test_the_first_block_is_a_ridge_regression(pruner: LivePruner, first: Tensor) -> None:
    """The first block's inputs are those of the dense model, so the solution is known.

    Tokens count less if their dense stream is far larger than the median of the windows.
    """
    ids, kept = random_windows(), pruner.space.dense.tolist()
    layer = pruner.lm.model.model.layers[0]
    read: list[Tensor] = []
    layer.self_attn.o_proj.register_forward_pre_hook(lambda module, x: read.append(x[0]))
    target = copy.deepcopy(layer.self_attn.o_proj)
    weights = TokenWeights.of(ids, first)

    def inputs() -> tuple[Tensor, Tensor]:
        """Inputs of all tokens, and the tokens' weights."""
        found = list[tuple[Tensor, Tensor]]()
        for windows in (ids, first)[: 1 + bool(len(first))]:
            pruner.lm.model(windows)
            parts = weights.split(read.pop().double())
            found += [(tokens, torch.full((len(tokens), 1), weight)) for tokens, weight in parts]
        return torch.cat([tokens for tokens, _ in found]), torch.cat([w for _, w in found])

    full, w = inputs()
    states = [pruner.lm.model.model.embed_tokens(part).double() for part in (ids, first)]
    rows = [tokens for part in states if len(part) for tokens, _ in weights.split(part)]
    stream = torch.cat(rows) + full @ target.weight.double().T + target.bias.double()
    size = stream.square().mean(1, keepdim=True)
    w = w / (1 + size / (10 * size[: ids.numel()].median()))
    w = w / w.sum()
    kept[0] -= 1
    pruner.apply(kept)
    x, _ = inputs()
    weight = layer.self_attn.o_proj.weight.double()
    bias = layer.self_attn.o_proj.bias.double()
    lacking = full @ target.weight.double().T + target.bias.double() - x @ weight.T - bias
    mean, shift = (w * x).sum(0), (w * lacking).sum(0)
    centred = x - mean
    covariance = (w * centred).T @ centred
    ridge = 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    cross = (w * centred).T @ (lacking - shift)
    change = torch.linalg.solve(covariance + ridge, cross).T
    expected, offset = weight + change, bias + shift - change @ mean
    refit_sequentially(pruner, ids, first, LEAST_SQUARES)
    torch.testing.assert_close(
        layer.self_attn.o_proj.weight.double(), expected, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(layer.self_attn.o_proj.bias.double(), offset, atol=1e-4, rtol=1e-4)


def test_producers_estimate_the_dense_models_inputs(pruner: LivePruner) -> None:
    """Only the first attention is pruned, so the inputs of the first FFN's producers are known."""
    ids, kept = random_windows(), pruner.space.dense.tolist()
    mlp = pruner.lm.model.model.layers[0].mlp
    read: list[Tensor] = []
    mlp.register_forward_pre_hook(lambda module, x: read.append(x[0].flatten(0, 1).double()))
    weights = [linear.weight.double() for linear in (mlp.gate_proj, mlp.up_proj)]
    pruner.lm.model(ids)
    kept[0] -= 1
    pruner.apply(kept)
    refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES)
    pruner.lm.model(ids)
    wanted, x = read[0], read[-1]
    gram = x.T @ x / len(x)
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    change = torch.linalg.solve(gram + ridge, x.T @ (wanted - x) / len(x)).T
    assert change.norm() > 0.01
    for linear, weight in zip((mlp.gate_proj, mlp.up_proj), weights, strict=True):
        expected = weight + weight @ change
        torch.testing.assert_close(linear.weight.double(), expected, atol=1e-4, rtol=1e-3)


@each("name", [name for name in ADDING if name != "olmoe-experts-only"])  # equal there
def test_corrected_producers_lower_the_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, ids = random_model(CHECKPOINTS[name]), random_windows()
    pruner = pruner_of(lm, LEAST_SQUARES)
    dense, errors = last_states(pruner, ids), list[Tensor]()
    pruner.apply(policies(pruner.space)["random"])
    for correct in (LivePruner.correct, lambda *_: None):
        monkeypatch.setattr(LivePruner, "correct", correct)
        refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES)
        errors.append((last_states(pruner, ids) - dense).square().mean())
    assert errors[0] < errors[1]


@form
def test_a_replayed_attention_changes_no_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, ids = random_model(CHECKPOINTS[name]), random_windows()
    pruner, found = pruner_of(lm, LEAST_SQUARES), list[list[Tensor]]()
    pruner.apply(policies(pruner.space)["random"])
    for replayed in (sequential._replayed, lambda *_: nullcontext()):
        monkeypatch.setattr(sequential, "_replayed", replayed)
        refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES)
        linears = (linear for coupling in lm.couplings for linear in coupling.linears)
        found.append([linear.weight.clone() for linear in linears])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@dataclass
class Recording(NoCompensation):
    """Changes nothing, and records the moments that it was given."""

    moments: list[ResidualMoments] = field(default_factory=list)

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        self.moments.append(moments)
        return None, None


def streams_and_inputs(pruner: LivePruner, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of each block, in float64: the residual stream behind it, and its consumer's inputs."""
    streams: list[Tensor] = []
    inputs: list[Tensor] = []
    hooks = []
    for layer in pruner.lm.model.model.layers:
        norm = layer.post_attention_layernorm  # reads the stream behind the attention
        hooks.append(norm.register_forward_pre_hook(lambda _, x: streams.append(x[0])))
        hooks.append(layer.register_forward_hook(lambda *call: streams.append(call[2])))
    for coupling in pruner.lm.couplings:
        consumer = coupling.consumer
        hooks.append(consumer.register_forward_pre_hook(lambda _, x: inputs.append(x[0])))
    pruner.lm.model(ids)
    for hook in hooks:
        hook.remove()
    flat = ([x.flatten(0, -2).double() for x in found] for found in (streams, inputs))
    return next(flat), next(flat)


def test_moments_of_batches_are_those_of_all_tokens_together(pruner: LivePruner) -> None:
    ids = torch.randint(0, 257, (10, 24), generator=torch.Generator().manual_seed(3))
    goals, _ = streams_and_inputs(pruner, ids)
    pruner.apply(policies(pruner.space)["random"])
    streams, inputs = streams_and_inputs(pruner, ids)
    recording = Recording()
    refit_sequentially(pruner, ids, NO_TOKENS, recording)
    assert len(recording.moments) == len(goals) == len(inputs)
    for found, goal, stream, x in zip(recording.moments, goals, streams, inputs, strict=True):
        r, size = goal - stream, goal.square().mean(1, keepdim=True)
        w = 1 / (1 + size / (10 * size[: 4 * 24].median()))  # of the first batch
        w = w / w.sum()
        expected = (w * x).T @ x, (w * r).T @ x, (w * r).sum(0), (w * x).sum(0)
        for own, direct in zip(vars(found).values(), expected, strict=True):
            torch.testing.assert_close(own.double(), direct, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_memory_holds_the_hidden_states_five_times(pruner: LivePruner) -> None:
    ids = torch.randint(0, 257, (128, 24), generator=torch.Generator().manual_seed(3))
    pruner.apply(policies(pruner.space)["random"])
    states = ids.numel() * pruner.lm.model.config.hidden_size * 4
    peak = peak_bytes(lambda: refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES))
    assert 5 <= peak / states < 6


def test_stored_layers_are_read_and_a_killed_run_goes_on(
    pruner: LivePruner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, kept = random_windows(), policies(pruner.space)["first attention empty"]

    def logits() -> Tensor:
        pruner.apply(kept)
        refit_sequentially(pruner, ids, NO_TOKENS, LEAST_SQUARES, tmp_path)
        return pruner.lm.model(ids).logits

    unbroken = logits()
    for file in sorted(tmp_path.iterdir())[1:]:
        file.unlink()
    assert torch.equal(logits(), unbroken)
    monkeypatch.setattr(sequential, "_Streams", None)  # no layer is run again
    assert torch.equal(logits(), unbroken)
    assert pruner.kept == kept
