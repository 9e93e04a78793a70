"""Recovery training layer by layer, from the first to the last."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import TensorDataset

from ppf.evaluation.perplexity import evenly
from ppf.llm import LanguageModel, LayerCalls
from ppf.progress import say
from ppf.ranges import Count, Positive
from ppf.recovery.curve import Trace
from ppf.recovery.fit import fit
from ppf.recovery.module import BlockModule
from ppf.recovery.settings import Machine, TrainingRun
from ppf.recovery.tuners import Tuner, TuningTask, without_dropout

Stream = Float[Tensor, "windows window width"]
_AT_ONCE = 4  # windows


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
        sets = [evenly(task.training, self.windows), task.validation]
        dense, pruned = (
            _Layers(lm, sets[0][:1], run.machine) for lm in (task.teacher, task.student)
        )
        targets, streams = ([model.enter(ids) for ids in sets] for model in (dense, pruned))
        without_dropout(task.student.model)
        count, tokens, seconds = len(pruned.layers), 0, 0.0
        for first in range(0, count, self.layers):
            part = slice(first, min(first + self.layers, count))
            say(f"Recovering layers {part.start} to {part.stop - 1} of {count}.")
            targets = [dense.run(stream, part) for stream in targets]
            module = BlockModule(
                pruned.layers[part], pruned.keywords[part], run.optimization(self.lr)
            )
            module.requires_grad_(True)
            training, validation = map(TensorDataset, streams, targets)
            fitted = fit(module, training, validation, run.part(f"layer-{first}"))
            tokens, seconds = max(tokens, fitted.tokens), seconds + fitted.seconds
            module.requires_grad_(False)
            streams = [pruned.run(stream, part) for stream in streams]
        task.student.model.eval()
        return Trace(tokens, seconds, [])


class _Layers:
    """Runs a model's layers one by one.

    Args:
        example: one window.
    """

    def __init__(
        self, lm: LanguageModel, example: Int[Tensor, "1 window"], machine: Machine
    ) -> None:
        self.lm, self.machine = lm, machine
        self.layers = list(lm.adapter.layers(lm.model))
        self.keywords = LayerCalls.record(lm, example.to(lm.device)).keywords

    def enter(self, ids: Int[Tensor, "windows window"]) -> Stream:
        """The stream before the first layer."""
        batches = ids.to(self.lm.device).split(_AT_ONCE)
        return torch.cat([LayerCalls.record(self.lm, batch).inputs for batch in batches])

    @torch.no_grad()
    def run(self, stream: Stream, part: slice) -> Stream:
        """The stream after some layers, from the stream before them."""
        layers = list(zip(self.layers[part], self.keywords[part], strict=True))
        behind = []
        with self.machine.autocast(self.lm.model):
            for states in stream.split(_AT_ONCE):
                for layer, keywords in layers:
                    states = layer(states, **keywords)
                behind.append(states)
        return torch.cat(behind)
