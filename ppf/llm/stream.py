"""Runs a model over some windows, one decoder layer at a time."""

from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppf.artefacts import draft
from ppf.llm.calls import LayerCalls
from ppf.llm.loading import LanguageModel


class LayerStream:
    """The hidden states of some windows in front of one decoder layer after another.

    Memory: the states in front of one layer, and the weights of one layer if they are offloaded.

    Args:
        folder: where several processes exchange states, so that no layer is run twice; None: there
            is one process. What enters a layer is deleted when the next layer has run. So a layer
            must not run before all results of the one before it are stored.
    """

    def __init__(
        self, lm: LanguageModel, windows: Int[Tensor, "windows window"], folder: Path | None = None
    ) -> None:
        self.lm, self.tokens, self._folder = lm, windows.numel(), folder
        self._calls = [LayerCalls.record(lm, ids) for ids in in_batches(windows.to(lm.device))]
        self._next = 0
        self._states = [call.inputs for call in self._calls]

    @torch.inference_mode()
    def run(self, layer: int) -> list[Tensor]:
        """Runs one layer on the states that enter it; hooks on its modules see them.

        Earlier layers are run first if the states that enter this one are not known.

        Returns:
            For each batch of windows, the states that leave the layer.
        """
        if layer != self._next and self._folder and self._file(layer).exists():
            stored = sorted(load_file(self._file(layer)).items())
            self._next, self._states = layer, [state.to(self.lm.device) for _, state in stored]
        elif layer < self._next:
            self._next, self._states = 0, [call.inputs for call in self._calls]
        while self._next <= layer:
            calls = [call.keywords[self._next] for call in self._calls]
            with self.lm.resident(self._next) as module:
                pairs = zip(self._states, calls, strict=True)
                self._states = [module(states, **call) for states, call in pairs]
            self._next += 1
        if self._folder:
            with draft(self._file(self._next)) as file:
                save_file({f"{i:04}": state.cpu() for i, state in enumerate(self._states)}, file)
            self._file(layer - 1).unlink(missing_ok=True)
        return self._states

    def _file(self, layer: int) -> Path:
        assert self._folder
        return self._folder / f"{layer:04}.safetensors"


def in_batches(windows: Int[Tensor, "windows window"]) -> list[Int[Tensor, "batch window"]]:
    """Windows in batches of four; if each is a single token, in batches of 512."""
    size = 4 if windows.shape[1] > 1 else 512
    return list(windows.split(size)) if len(windows) else []
