"""Sequential re-estimation: refits the consumers of one policy from the first layer to the last.

The level bank compensates each site alone, on inputs of the dense model. For a single policy, each
consumer can also reduce the errors of the pruned blocks before it in the residual stream.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm import LayerCalls
from ppf.llm.windows import in_batches
from ppf.progress import track
from ppf.pruning.compensation import Compensation, ResidualMoments
from ppf.pruning.live import LivePruner
from ppf.pruning.statistics import TokenWeights


@torch.inference_mode()
def refit_sequentially(
    pruner: LivePruner,
    windows: Int[Tensor, "windows window"],
    first: Int[Tensor, "tokens 1"],
    compensation: Compensation,
) -> None:
    """Refits the consumers of the current policy to the dense model's residual stream.

    The hidden states of the dense and of the pruned model are computed side by side, layer by
    layer. The consumer of each block is refitted: it regresses the difference between the two
    residual streams after the block on its own inputs. Blocks of one kind in a layer share their
    residual stream and are refitted one after another. The next policy undoes it.

    Memory: the hidden states of all windows three times, and the moments of one consumer. The
    states are the pruned model's in front of a layer, and the dense model's behind its attention
    and behind the layer.

    Args:
        pruner: a pruner with the policy applied.
        windows: windows of the calibration part.
        first: further first tokens of windows (see `TokenWeights`); there may be none.
        compensation: computes the refit.

    Raises:
        PPFError: the family has norms between its consumers and the residual stream, or a block
            does not read every token.
    """
    lm, space = pruner.lm, pruner.space
    kept, types = pruner.kept, pruner.types
    if not lm.adapter.adds_to_stream(lm.model.config):
        raise PPFError(
            f"sequential re-estimation is not supported for the family"
            f" '{lm.model.config.model_type}', whose blocks end in norms: give sequential=false."
        )
    layers = lm.adapter.layers(lm.model)
    sites = {site.name: number for number, site in enumerate(space.sites)}
    pruner.apply(space.dense.tolist())
    dense, keywords = list[Tensor](), list[list[dict[str, Any]]]()
    for ids in (*in_batches(windows), *in_batches(first)):
        call = LayerCalls.record(lm, ids.to(lm.device))
        dense.append(call.inputs)
        keywords.append(call.keywords)
    pruned, weights = list(dense), TokenWeights.of(windows, first)

    def run(index: int, states: list[Tensor]) -> Iterator[Tensor]:
        for state, named in zip(states, keywords, strict=True):
            yield layers[index](state, **named[index])

    for index in track(range(len(layers)), f"Refitting {len(layers)} layers"):
        blocks = [coupling for coupling in lm.couplings if coupling.layer == index]
        mixers = [block.consumer for block in blocks if block.kind == "attention"]
        behind = list[Tensor]()
        with _last_calls(lm.device, mixers) as calls:
            for number, after in enumerate(run(index, dense)):
                behind.append(_behind(mixers, calls, dense[number]))
                dense[number] = after
        for block in blocks:
            if (site := sites.get(block.name)) is None:
                continue
            pruner.narrow(site, kept[site], types[site])
            attention, consumer = block.kind == "attention", block.consumer
            moments = _zeros(consumer, lm.device)
            with _last_calls(lm.device, mixers if attention else [consumer]) as calls:
                batches = zip(
                    behind if attention else dense, pruned, run(index, pruned), strict=True
                )
                for target, before, after in batches:
                    stream = _behind(mixers, calls, before) if attention else after
                    _add(moments, target - stream, calls.get(consumer), weights, block.name)
            pruner.refit(site, *compensation.refit(moments))
        for number, after in enumerate(run(index, pruned)):
            pruned[number] = after


class _Call(NamedTuple):
    """The inputs of a consumer, one row per token, and its output."""

    inputs: Float[Tensor, "tokens width"]
    output: Tensor


_Calls = dict[nn.Linear, _Call]


@contextmanager
def _last_calls(device: torch.device, consumers: Sequence[nn.Linear]) -> Iterator[_Calls]:
    """The last call of each consumer, on a device; the consumer of an empty block has none."""
    calls: _Calls = {}

    def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = _Call(inputs[0].flatten(0, -2).to(device), output.to(device))

    handles = [consumer.register_forward_hook(hook) for consumer in consumers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _behind(consumers: Sequence[nn.Linear], calls: _Calls, state: Tensor) -> Tensor:
    """The residual stream behind the blocks of some consumers, from the stream before them."""
    for consumer in consumers:
        if call := calls.get(consumer):
            state = state + call.output.view_as(state)
        elif consumer.bias is not None:
            state = state + consumer.bias.to(state.device)
    return state


def _zeros(consumer: nn.Linear, device: torch.device) -> ResidualMoments:
    """Moments over no tokens; they have no columns if the block is empty."""
    rows, columns = consumer.weight.shape
    shapes = (columns, columns), (rows, columns), (rows,), (columns,)
    return ResidualMoments(*(torch.zeros(shape, device=device) for shape in shapes))


def _add(
    moments: ResidualMoments, residual: Tensor, call: _Call | None, weights: TokenWeights, name: str
) -> None:
    """Adds the tokens of a batch to moments.

    Args:
        residual: the error of the residual stream.
        call: of the block's consumer; None: the block is empty.
        weights: of the tokens.
        name: of the block, for error messages.
    """
    tokens = residual.shape[:-1]
    x = call.inputs if call else residual.flatten(0, -2)[:, :0]
    if len(x) != tokens.numel():
        raise PPFError(
            f"sequential re-estimation is not supported for {name}, which does not read every"
            " token: give sequential=false."
        )
    parts = zip(
        weights.split(residual.float()), weights.split(x.float().view(*tokens, -1)), strict=True
    )
    for (r, weight), (x, _) in parts:
        moments.gram.addmm_(x.T, x, alpha=weight)
        moments.cross.addmm_(r.T, x, alpha=weight)
        moments.mean.add_(r.sum(0), alpha=weight)
        moments.input_mean.add_(x.sum(0), alpha=weight)
