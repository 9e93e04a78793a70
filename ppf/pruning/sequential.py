"""Sequential re-estimation: refits the blocks of one policy from the first layer to the last.

The level bank compensates each site alone, on inputs of the dense model. But pruning earlier blocks
changes a block's inputs. For a single policy, its producers can be corrected for these errors. Its
consumer can reduce what remains of them in the residual stream.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm import Coupling, LanguageModel, LayerCalls
from ppf.llm.calls import forward_replaced
from ppf.llm.stream import in_batches
from ppf.progress import track
from ppf.pruning.compensation import Compensation, ResidualMoments
from ppf.pruning.live import LivePruner
from ppf.pruning.statistics import TokenWeights, add_symmetric, blocks_of, inverse_size, mirrored
from ppf.pruning.tensor_files import LayerFiles


@torch.inference_mode()
def refit_sequentially(
    pruner: LivePruner,
    windows: Int[Tensor, "windows window"],
    first: Int[Tensor, "tokens 1"],
    compensation: Compensation,
    folder: Path | None = None,
) -> None:
    """Refits the blocks of the current policy to the dense model's residual stream.

    The hidden states of the dense and of the pruned model are computed side by side, layer by
    layer. If the compensation changes weights, the producers of each block first get an estimate of
    the dense model's inputs: the difference between the two models' inputs is regressed on the
    pruned model's. Then the block's consumer is refitted: the difference between the two residual
    streams after the block is regressed on the consumer's inputs. The next policy undoes it.

    Tokens count less if their stream is far larger than that of others (see `_limited`).

    If a norm follows the consumer, the regression is done in front of the norm. Its target is the
    output of the dense consumer. What the stream lacks behind the norm is divided by the norm's
    slope and added to it. Tokens are weighted as in `layer_moments`.

    Memory: the hidden states of all windows five times, the inputs of one consumer, and its
    moments. One set of states is the pruned model's, in front of a layer. The others are the dense
    model's: behind the attention, behind the layer, and in front of the producers of both blocks.

    Args:
        pruner: a pruner with the policy applied.
        windows: windows of the calibration part.
        first: further first tokens of windows (see `TokenWeights`); there may be none.
        compensation: computes the refit.
        folder: where the weights of each layer are stored, and read if they are there; a killed run
            goes on with the next layer. None: nothing is stored.

    Raises:
        PPFError: the family's norms follow the sum of block and residual stream.
    """
    lm = pruner.lm
    if not refits(lm):
        raise PPFError(
            f"sequential re-estimation is not supported for the family"
            f" '{lm.model.config.model_type}', whose norms follow the sum: give sequential=false."
        )
    refit = _Refit(pruner, windows, first, compensation)
    files = folder and LayerFiles(folder, refit.layer)
    layers = range(len(lm.adapter.layers(lm.model)))
    for layer in track(layers, f"Refitting {len(layers)} layers"):
        if files:
            refit.install(layer, files.read(layer))
        else:
            refit.layer(layer)


def refits(lm: LanguageModel) -> bool:
    """Whether blocks of the model's family can be re-estimated."""
    normed = all(lm.adapter.norm_behind(coupling) for coupling in lm.couplings)
    return normed or lm.adapter.adds_to_stream(lm.model.config)


class _Refit:
    """Refits the layers of one policy in turn.

    Args:
        pruner, windows, first, compensation: as for `refit_sequentially`.
    """

    def __init__(
        self, pruner: LivePruner, windows: Tensor, first: Tensor, compensation: Compensation
    ) -> None:
        self._pruner, self._lm, self._compensation = pruner, pruner.lm, compensation
        self._kept, self._types = pruner.kept, pruner.types
        self._text = windows, first
        self._passed = 0  # layers that both streams have passed

    @cached_property
    def _streams(self) -> "_Streams":
        return _Streams.of(self._lm, *self._text)

    def layer(self, index: int) -> dict[str, Tensor]:
        """Refits a layer and returns its weights; all earlier layers must have theirs."""
        streams = self._streams
        for earlier in range(self._passed, index):  # which files had
            weights = self._weights(earlier)
            self._widen(earlier)
            streams.dense = list(streams.run(earlier, streams.dense))
            self.install(earlier, weights)
            streams.pruned = list(streams.run(earlier, streams.pruned))
        self._widen(index)
        self._refit(index)
        self._passed = index + 1
        return self._weights(index)

    def install(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Sets the weights of a layer that `layer` returned."""
        for site in self._sites(index).values():
            self._pruner.narrow(site, self._kept[site], self._types[site])
            start = f"{site}."
            own = {k.removeprefix(start): w for k, w in weights.items() if k.startswith(start)}
            self._pruner.set_weights(site, own)

    def _weights(self, index: int) -> dict[str, Tensor]:
        return {
            f"{site}.{name}": weight
            for site in self._sites(index).values()
            for name, weight in self._pruner.weights(site).items()
        }

    def _widen(self, index: int) -> None:
        """Makes a layer dense."""
        for site in self._sites(index).values():
            self._pruner.narrow(site, self._pruner.space.sites[site].units)

    def _sites(self, index: int) -> dict[Coupling, int]:
        """The positions of a layer's blocks in the space."""
        numbers = {site.name: number for number, site in enumerate(self._pruner.space.sites)}
        blocks = (block for block in self._lm.couplings if block.layer == index)
        return {block: numbers[block.name] for block in blocks if block.name in numbers}

    def _refit(self, index: int) -> None:
        """Narrows and refits one layer, and passes it."""
        lm, pruner, streams = self._lm, self._pruner, self._streams
        compensation = self._compensation
        layer = lm.adapter.layers(lm.model)[index]
        attention = lm.adapter.attention(index, layer)  # perhaps not prunable, as in OLMoE
        mixer, adding = attention.consumer, lm.adapter.norm_behind(attention) or attention.consumer
        refitted = self._sites(index)
        readers = {
            block: block.producers[0].linear
            for block, site in refitted.items()
            if compensation.refits and self._kept[site]
        }
        norms = {block: norm for block in refitted if (norm := lm.adapter.norm_behind(block))}
        behind, wanted, outputs = streams.pass_dense(index, adding, readers, norms)
        with ExitStack() as finished:
            for block, site in refitted.items():
                pruner.narrow(site, self._kept[site], self._types[site])
                if reader := readers.get(block):
                    found: _Found = ((x, x) for x in streams.inputs(index, reader))
                    moments = streams.moments(wanted.pop(block), found)
                    pruner.correct(site, compensation.correction(moments))
                if block in norms and not self._kept[site]:
                    continue  # the norm would scale a bias to full strength
                if block.consumer is mixer:
                    found, targets = streams.around_attention(index, mixer), behind
                else:
                    found, targets = streams.around(index, block.consumer), [*streams.dense]
                if block in norms:
                    found = _in_front(lm, block, norms[block], found, targets, outputs[block])
                    targets = outputs.pop(block)
                weigh = inverse_size if block in norms else _limited(targets[0])
                whole = blocks_of(block)[0] == 1
                moments = streams.moments(targets, found, weigh, whole=whole)
                pruner.refit(site, *compensation.refit(moments.without(block.consumer)))
                if self._kept[site]:
                    finished.enter_context(_replayed(lm, block, targets))
            streams.pruned = list(streams.run(index, streams.pruned))


_Found = Iterator[tuple[Tensor, Tensor]]
"""Inputs of a projection of the pruned model, and what the model has in place of a target."""


@dataclass
class _Streams:
    """The residual streams of the dense and of the pruned model in front of a layer, in batches.

    Args:
        keywords: keyword arguments of each batch's layers.
        weights: of the tokens.
    """

    lm: LanguageModel
    keywords: list[list[dict[str, Any]]]
    weights: TokenWeights
    dense: list[Tensor]
    pruned: list[Tensor]

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        windows: Int[Tensor, "windows window"],
        first: Int[Tensor, "tokens 1"],
    ) -> "_Streams":
        batches = (*in_batches(windows), *in_batches(first))
        calls = [LayerCalls.record(lm, ids.to(lm.device)) for ids in batches]
        states = [call.inputs for call in calls]
        keywords = [call.keywords for call in calls]
        return cls(lm, keywords, TokenWeights.of(windows, first), states, list(states))

    def pass_dense(
        self,
        index: int,
        adding: nn.Module,
        readers: Mapping[Coupling, nn.Linear],
        normed: Collection[Coupling],
    ) -> tuple[list[Tensor], dict[Coupling, list[Tensor]], dict[Coupling, list[Tensor]]]:
        """Passes a layer of the dense model.

        Args:
            adding: the module whose output the attention adds to the stream.
            readers: a producer of each block whose inputs are wanted.
            normed: blocks whose consumers' outputs are wanted.

        Returns:
            The stream behind the attention, the inputs of the readers, and the outputs of the
            consumers.
        """
        behind, inputs = list[Tensor](), {block: list[Tensor]() for block in readers}
        outputs = {block: list[Tensor]() for block in normed}
        wanted = [adding, *readers.values(), *(block.consumer for block in normed)]
        with ExitStack() as hooked:
            calls = {x: hooked.enter_context(_last_call(x)) for x in dict.fromkeys(wanted)}
            for number, after in enumerate(self.run(index, self.dense)):
                before, self.dense[number] = self.dense[number], after
                behind.append(before + _like(calls[adding]["output"], before))
                for block, reader in readers.items():
                    inputs[block].append(_like(calls[reader]["input"], before))
                for block in normed:
                    outputs[block].append(_like(calls[block.consumer]["output"], before))
        return behind, inputs, outputs

    def inputs(self, index: int, linear: nn.Linear) -> Iterator[Tensor]:
        """The pruned model's inputs of a projection; they have no columns if its block is empty.

        The layer is not run further.
        """
        with _last_call(linear, stop=True) as call:
            for before, _ in zip(self.pruned, self.run(index, self.pruned), strict=True):
                yield _like(call.pop("input", None), before)

    def around_attention(self, index: int, consumer: nn.Linear) -> _Found:
        """As `around`, for the consumer of the attention, behind which the layer is not run."""
        for before, x in zip(self.pruned, self.inputs(index, consumer), strict=True):
            bias = None if x.shape[-1] else consumer.bias
            yield x, before if bias is None else before + bias.to(before.device)

    def around(self, index: int, consumer: nn.Linear) -> _Found:
        """The pruned model's inputs of a consumer, and its stream without the consumer's outputs.

        An empty block has no such inputs, and its bias stays in the stream.
        """
        taken = list[Tensor]()

        def take(x: Tensor) -> Tensor:
            taken.append(x)
            return x.new_zeros(*x.shape[:-1], consumer.out_features)

        with forward_replaced(consumer, take):
            for before, after in zip(self.pruned, self.run(index, self.pruned), strict=True):
                yield _like(taken.pop() if taken else None, before), after

    def moments(
        self,
        targets: list[Tensor],
        found: _Found,
        weigh: Callable[[Tensor], Tensor] | None = None,
        *,
        whole: bool = True,
    ) -> ResidualMoments:
        """Moments of a projection's inputs and of what the pruned model lacks.

        Args:
            targets: what the dense model has; the inputs take its place in the list.
            found: inputs of the projection, and what the pruned model has instead of the targets.
            weigh: returns roots of further weights of tokens, from their targets.
            whole: False: only means are wanted.
        """
        sums, total = list[Tensor](), torch.zeros((), device=self.lm.device)
        for number, (x, present) in enumerate(found):
            target, targets[number] = targets[number], x
            residual, x = target.float() - present.float(), x.float()
            if not sums:
                rows, columns = residual.shape[-1], x.shape[-1]
                n = columns if whole else 0
                shapes = (n, n), (rows, n), (rows,), (columns,)
                sums = [torch.zeros(shape, device=self.lm.device) for shape in shapes]
            gram, cross, mean, input_mean = sums
            scaled = weighted = residual, x
            if weigh:
                scales = weigh(target)
                scaled = residual * scales, x * scales
                weighted = scaled[0] * scales, scaled[1] * scales
                for scale, weight in self.weights.split(scales):
                    total.add_(scale.square().sum(), alpha=weight)
            for (r, weight), (x, _) in zip(*map(self.weights.split, scaled), strict=True):
                if whole:
                    add_symmetric(gram, x.T, x, weight)
                    cross.addmm_(r.T, x, alpha=weight)
            for (r, weight), (x, _) in zip(*map(self.weights.split, weighted), strict=True):
                mean.add_(r.sum(0), alpha=weight)
                input_mean.add_(x.sum(0), alpha=weight)
        if weigh:
            sums = [part / total for part in sums]
        gram, *others = sums
        return ResidualMoments(mirrored(gram), *others)

    def run(self, index: int, states: Sequence[Tensor]) -> Iterator[Tensor]:
        """The outputs of a layer; its input, if a hook has stopped it."""
        layer = self.lm.adapter.layers(self.lm.model)[index]
        for state, named in zip(states, self.keywords, strict=True):
            try:
                yield layer(state, **named[index])
            except _Stopped:
                yield state


def _limited(usual: Float[Tensor, "*tokens hidden"]) -> Callable[[Tensor], Tensor]:
    """Weighs tokens whose stream is far larger than that of others by its inverse square.

    The norm in front of the next block divides by the size of the stream. So an error in a token
    counts relative to its size. Without this, least squares adapts all channels to a few tokens,
    whose stream is a hundred times larger than that of others (see `TokenWeights`).

    Args:
        usual: the stream of some tokens; their median mean square, times `_LARGE`, is large.
    """
    large = _LARGE * usual.float().square().mean(-1).median()
    return lambda x: (1 + x.float().square().mean(-1, keepdim=True) / large).rsqrt()


def _in_front(
    lm: LanguageModel,
    block: Coupling,
    norm: nn.Module,
    found: _Found,
    targets: list[Tensor],
    outputs: list[Tensor],
) -> _Found:
    """As `found`, for targets in front of a norm: the dense model's outputs of the consumer.

    What the stream lacks behind the norm is divided by the norm's slope.

    Args:
        targets: what the stream should be behind the block.
        outputs: of the dense model's consumer.
    """
    for (x, present), target, output in zip(found, targets, outputs, strict=True):
        with lm.resident(block.layer):
            own = output.to(lm.device_of(block.layer))
            factor = norm(torch.ones_like(own[:1, :1])).to(output.device, torch.float)
            added = norm(own).to(output.device)
        slope = factor / (factor.square() + _FLAT * factor.square().mean())
        lacking = (target - present - added).float()
        yield x, -lacking * slope / inverse_size(output)


@contextmanager
def _replayed(lm: LanguageModel, block: Coupling, states: list[Tensor]) -> Iterator[None]:
    """The block returns its outputs for all batches in turn, without being computed again.

    Args:
        states: inputs of its consumer; replaced by the outputs.
    """
    module, device = block.block, lm.device_of(block.layer)
    with lm.resident(block.layer):
        for number, x in enumerate(states):
            states[number] = block.consumer(x.to(device))
    outputs = cycle(states)

    def attend(*arguments: Any, **named: Any) -> tuple[Tensor, None]:
        return next(outputs), None

    def feed(x: Tensor) -> Tensor:
        return next(outputs).view(*x.shape[:-1], -1)  # OPT flattens the inputs of its FFN

    with forward_replaced(module, attend if block.kind == "attention" else feed):
        yield


_LARGE = 10  # multiple of the usual mean square of the stream
_FLAT = 0.1  # share of the mean squared slope below which a channel's slope counts as flat


class _Stopped(Exception):  # noqa: N818 - says that a layer has run far enough
    pass


@contextmanager
def _last_call(linear: nn.Module, *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """The input and output of a projection's last call; if `stop`, it stops the layer instead."""
    call: dict[str, Tensor] = {}

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        call["input"] = inputs[0]
        if stop:
            raise _Stopped

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        call["output"] = output

    handles = linear.register_forward_pre_hook(enter), linear.register_forward_hook(leave)
    try:
        yield call
    finally:
        for handle in handles:
            handle.remove()


def _like(
    inputs: Tensor | None, before: Float[Tensor, "batch window hidden"]
) -> Float[Tensor, "batch window width"]:
    """Rows of tokens in the form and on the device of hidden states; None: without columns."""
    rows = before[..., :0] if inputs is None else inputs
    return rows.to(before.device).view(*before.shape[:-1], -1)
