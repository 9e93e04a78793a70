"""Sequential re-estimation: refits the consumers of one policy from the first layer to the last.

The level bank compensates each site alone, on inputs of the dense model. For a single policy, each
consumer can also reduce the errors of the pruned blocks before it in the residual stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm import LayerCalls
from ppf.progress import track
from ppf.pruning.compensation import Compensation, ResidualMoments
from ppf.pruning.live import LivePruner


@torch.inference_mode()
def refit_sequentially(
    pruner: LivePruner, windows: Int[Tensor, "windows window"], compensation: Compensation
) -> None:
    """Refits the consumers of the current policy to the dense model's residual stream.

    The hidden states of the dense and of the pruned model are computed side by side, layer by
    layer. The consumer of each block is refitted: it regresses the difference between the two
    residual streams after the block on its own inputs. Blocks of one kind in a layer share their
    residual stream and are refitted one after another. The next policy undoes it.

    Args:
        pruner: a pruner with the policy applied.
        windows: windows of the calibration part. Memory holds their hidden states twice.
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
    calls = [LayerCalls.record(lm, ids) for ids in windows.to(lm.device).split(4)]
    dense = [call.inputs for call in calls]
    pruned = dense

    def run(index: int, states: list[Tensor]) -> list[Tensor]:
        pairs = zip(states, calls, strict=True)
        return [layers[index](state, **call.keywords[index]) for state, call in pairs]

    for index in track(range(len(layers)), f"Refitting {len(layers)} layers"):
        blocks = [coupling for coupling in lm.couplings if coupling.layer == index]
        mixers = [block.consumer for block in blocks if block.kind == "attention"]
        with _record(lm.device, *mixers) as records:
            after = run(index, dense)
        behind = _behind(records, dense)
        for block in blocks:
            if (site := sites.get(block.name)) is None:
                continue
            pruner.narrow(site, kept[site], types[site])
            attention = block.kind == "attention"
            with _record(lm.device, *(mixers if attention else [block.consumer])) as records:
                stream = run(index, pruned)
            if attention:
                stream = _behind(records, pruned)
            target = behind if attention else after
            residuals = [goal - state for goal, state in zip(target, stream, strict=True)]
            moments = _moments(block.name, residuals, records[block.consumer].inputs)
            pruner.refit(site, *compensation.refit(moments))
        dense, pruned = after, run(index, pruned)


@dataclass
class _Record:
    """Inputs and outputs of a consumer, one tensor per batch; none if its block is empty."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


_Records = dict[nn.Linear, _Record]


@contextmanager
def _record(device: torch.device, *consumers: nn.Linear) -> Iterator[_Records]:
    records = {consumer: _Record() for consumer in consumers}

    def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        records[module].inputs.append(inputs[0].flatten(0, -2).to(device))
        records[module].outputs.append(output.to(device))

    handles = [consumer.register_forward_hook(hook) for consumer in consumers]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _behind(records: _Records, states: list[Tensor]) -> list[Tensor]:
    """The residual stream after the recorded blocks, from the stream before them."""
    for consumer, record in records.items():
        if record.outputs:
            states = [s + out.view_as(s) for s, out in zip(states, record.outputs, strict=True)]
        elif consumer.bias is not None:
            states = [state + consumer.bias.to(state.device) for state in states]
    return states


def _moments(name: str, residuals: list[Tensor], inputs: list[Tensor]) -> ResidualMoments:
    """Moments over all tokens; they have no columns if the block is empty."""
    rows = torch.cat([part.flatten(0, -2) for part in residuals]).float()
    columns = torch.cat(inputs).float() if inputs else rows[:, :0]
    if len(columns) != len(rows):
        raise PPFError(
            f"sequential re-estimation is not supported for {name}, which does not read every"
            " token: give sequential=false."
        )
    return ResidualMoments(
        gram=columns.T @ columns / len(rows),
        cross=rows.T @ columns / len(rows),
        mean=rows.mean(0),
        input_mean=columns.mean(0),
    )
