"""Sequential re-estimation: a chosen policy's consumers, refitted front to back.

The bank compensates every site alone, on inputs of the dense model. Once a policy is chosen, each
consumer can also make up for what the pruned blocks before it did to the residual stream.
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
from ppf.pruning.compensation import Compensation, Shortfall
from ppf.pruning.live import LivePruner


@torch.inference_mode()
def refit_sequentially(
    pruner: LivePruner, windows: Int[Tensor, "windows window"], compensation: Compensation
) -> None:
    """Refits the present policy's consumers to the dense model's residual stream.

    Two streams of hidden states run through the layers, the dense model's and the pruned one's.
    After each block, its consumer learns from its own inputs what the pruned stream still lacks.
    The next policy that is applied undoes it.

    Args:
        windows: of the calibration part; their hidden states are held twice.

    Raises:
        PPFError: the family normalises what its blocks add to the stream.
    """
    lm, space, kept = pruner.lm, pruner.space, pruner.kept
    if not lm.adapter.adds_to_stream(lm.model.config):
        raise PPFError(
            f"sequential re-estimation is not supported for the family"
            f" '{lm.model.config.model_type}', whose blocks end in norms: give sequential=false."
        )
    layers = lm.adapter.layers(lm.model)
    consumers = {(c.layer, c.kind): c.consumer for c in lm.couplings}
    sites = {(site.layer, site.kind): i for i, site in enumerate(space.sites)}
    pruner.apply(space.dense.tolist())
    calls = [LayerCalls.record(lm, ids) for ids in windows.to(lm.device).split(4)]
    dense = [call.inputs for call in calls]
    pruned = dense

    def run(index: int, states: list[Tensor]) -> list[Tensor]:
        pairs = zip(states, calls, strict=True)
        return [layers[index](state, **call.keywords[index]) for state, call in pairs]

    for index in track(range(len(layers)), f"Refitting {len(layers)} layers"):
        with _watch(consumers[index, "attention"]) as seen:
            after = run(index, dense)
        streams = {"attention": seen.added_to(dense), "mlp": after}
        for kind, stream in streams.items():
            if (site := sites.get((index, kind))) is None:
                continue
            pruner.narrow(site, kept[site])
            with _watch(consumers[index, kind]) as seen:
                reached = run(index, pruned)
            if kind == "attention":
                reached = seen.added_to(pruned)
            lacking = [goal - state for goal, state in zip(stream, reached, strict=True)]
            pruner.correct(site, *compensation.correction(_shortfall(lacking, seen.inputs)))
        dense, pruned = after, run(index, pruned)


@dataclass
class _Seen:
    """What a consumer read and gave, batch by batch; nothing where its block is empty."""

    consumer: nn.Linear
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def added_to(self, states: list[Tensor]) -> list[Tensor]:
        """The residual stream right behind the block."""
        if not self.outputs:
            return [s if self.consumer.bias is None else s + self.consumer.bias for s in states]
        return [s + out.view_as(s) for s, out in zip(states, self.outputs, strict=True)]


@contextmanager
def _watch(consumer: nn.Linear) -> Iterator[_Seen]:
    seen = _Seen(consumer)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.inputs.append(inputs[0].flatten(0, -2))
        seen.outputs.append(output)

    handle = consumer.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _shortfall(lacking: list[Tensor], inputs: list[Tensor]) -> Shortfall:
    """Moments over all tokens; without columns where the block is empty."""
    rows = torch.cat([part.flatten(0, -2) for part in lacking]).float()
    columns = torch.cat(inputs).float() if inputs else rows[:, :0]
    return Shortfall(
        gram=columns.T @ columns / len(rows),
        cross=rows.T @ columns / len(rows),
        mean=rows.mean(0),
    )
