"""Sequential re-estimation: refits the consumers of one policy from the first layer to the last.

The level bank compensates each site alone, on inputs of the dense model. For a single policy, each
consumer can also reduce the errors that pruned blocks before it left in the residual stream.
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
    residual streams behind the block on its own inputs. The next policy that is applied undoes it.

    Args:
        pruner: a pruner with the policy applied.
        windows: windows of the calibration part. Memory holds their hidden states twice.
        compensation: computes the refit.

    Raises:
        PPFError: the family has norms between its consumers and the residual stream.
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
        with _record(consumers[index, "attention"]) as record:
            after = run(index, dense)
        targets = {"attention": record.added_to(dense), "mlp": after}
        for kind, target in targets.items():
            if (site := sites.get((index, kind))) is None:
                continue
            pruner.narrow(site, kept[site])
            with _record(consumers[index, kind]) as record:
                stream = run(index, pruned)
            if kind == "attention":
                stream = record.added_to(pruned)
            residuals = [goal - state for goal, state in zip(target, stream, strict=True)]
            pruner.refit(site, *compensation.refit(_moments(residuals, record.inputs)))
        dense, pruned = after, run(index, pruned)


@dataclass
class _Record:
    """Inputs and outputs of a consumer, one tensor per batch; none if its block is empty."""

    consumer: nn.Linear
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def added_to(self, states: list[Tensor]) -> list[Tensor]:
        """The residual stream behind the block, from the stream before it."""
        if not self.outputs:
            return [s if self.consumer.bias is None else s + self.consumer.bias for s in states]
        return [s + out.view_as(s) for s, out in zip(states, self.outputs, strict=True)]


@contextmanager
def _record(consumer: nn.Linear) -> Iterator[_Record]:
    record = _Record(consumer)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        record.inputs.append(inputs[0].flatten(0, -2))
        record.outputs.append(output)

    handle = consumer.register_forward_hook(hook)
    try:
        yield record
    finally:
        handle.remove()


def _moments(residuals: list[Tensor], inputs: list[Tensor]) -> ResidualMoments:
    """Moments over all tokens; they have no columns if the block is empty."""
    rows = torch.cat([part.flatten(0, -2) for part in residuals]).float()
    columns = torch.cat(inputs).float() if inputs else rows[:, :0]
    return ResidualMoments(
        gram=columns.T @ columns / len(rows),
        cross=rows.T @ columns / len(rows),
        mean=rows.mean(0),
    )
