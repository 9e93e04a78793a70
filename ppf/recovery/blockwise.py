"""Recovery training layer by layer, from the first to the last."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import TensorDataset

from ppf.llm import LanguageModel, LayerCalls
from ppf.progress import Stopwatch, say
from ppf.ranges import Count, Positive
from ppf.recovery.curve import Trace
from ppf.recovery.fit import fit
from ppf.recovery.module import BlockModule
from ppf.recovery.settings import TrainingRun
from ppf.recovery.tuners import Tuner, TuningTask, without_dropout
from ppf.text.windows import evenly

_STREAMS = "streams"
Stream = Float[Tensor, "windows window width"]


class Blockwise(Tuner):
    """Trains some layers at a time to reproduce the dense model's residual stream after them.

    The layers read the pruned model's own stream, so they also correct errors of the layers before
    them. Only their weights have gradients and optimizer states. Memory holds, for all windows that
    are read, the pruned model's stream before these layers and the dense model's stream after them.

    Args:
        layers: consecutive layers that are trained together.
        windows: number of windows of the training part, evenly spread. They are read again if
            `recovery.tokens` exceeds their tokens.
    """

    reads_losses: ClassVar[bool] = False

    def __init__(self, lr: Positive, layers: Count, windows: Count) -> None:
        super().__init__(lr)
        self.layers, self.windows = layers, windows

    def tune(self, task: TuningTask, run: TrainingRun) -> Trace:
        clock = Stopwatch()
        sets = [evenly(task.training, self.windows), task.validation]
        dense, pruned = (_Layers(lm, sets[0][:1], run) for lm in (task.teacher, task.student))
        with clock(_STREAMS):
            targets, streams = ([model.enter(ids) for ids in sets] for model in (dense, pruned))
        without_dropout(task.student.model)
        count, tokens, seconds = len(pruned.layers), 0, 0.0
        for first in range(0, count, self.layers):
            part = slice(first, min(first + self.layers, count))
            say(f"Recovering layers {part.start} to {part.stop - 1} of {count}.")
            with clock(_STREAMS):
                for target in targets:
                    dense.run(target, part)
            own = run.part(f"layer-{first}")
            module = BlockModule(
                pruned.layers[part], pruned.keywords[part], run.optimization(self.lr), own.name
            )
            module.requires_grad_(True)
            if module(streams[0][:1]).requires_grad:  # not if pruning has emptied the layers
                training, validation = map(TensorDataset, streams, targets)
                fitted = fit(module, training, validation, own)
                tokens, seconds = max(tokens, fitted.tokens), seconds + fitted.seconds
            module.requires_grad_(False)
            with clock(_STREAMS):
                for stream in streams:
                    pruned.run(stream, part)
        task.student.model.eval()
        return Trace(tokens, seconds + clock.seconds[_STREAMS], [])


class _Layers:
    """Runs a model's layers one by one.

    Args:
        example: one window.
        run: gives the number format and the number of windows that are run at a time.
    """

    def __init__(
        self, lm: LanguageModel, example: Int[Tensor, "1 window"], run: TrainingRun
    ) -> None:
        self.lm, self.machine, self.at_once = lm, run.machine, run.settings.micro_batch
        self.layers = list(lm.adapter.layers(lm.model))
        self.keywords = LayerCalls.record(lm, example.to(lm.device)).keywords

    def enter(self, ids: Int[Tensor, "windows window"]) -> Stream:
        """The stream before the first layer."""
        batches = ids.to(self.lm.device).split(self.at_once)
        return torch.cat([LayerCalls.record(self.lm, batch).inputs for batch in batches])

    def run(self, stream: Stream, part: slice) -> None:
        """Replaces the stream before some layers by the stream after them."""
        layers = list(zip(self.layers[part], self.keywords[part], strict=True))
        with torch.no_grad(), self.machine.autocast(self.lm.model):
            for before in stream.split(self.at_once):
                states = before
                for layer, keywords in layers:
                    states = layer(states, **keywords)
                before.copy_(states)
