"""Moments, importance scores and traits of the dense model, computed layer by layer."""

import dataclasses
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ppf.artefacts import Artefacts, signature
from ppf.llm import LanguageModel, LayerStream, load
from ppf.progress import say, track
from ppf.pruning import Importance, Statistics, Traits
from ppf.pruning.allocation import AlphaPruning
from ppf.pruning.importance import score_coupling
from ppf.pruning.signatures import recorded, scores_query_heads, signatures
from ppf.pruning.statistics import FIRST_TOKENS, MOMENTS, TokenWeights, layer_moments
from ppf.pruning.tensor_files import LayerFiles, StoredTensors
from ppf.pruning.traits import layer_exponent, layer_traits
from ppf.ranks import on_rank_0, own_first
from ppf.text import Text, build_text
from ppf.threads import cpu_threads

_STRIDE = 4  # traits are means over every fourth calibration window
_WIDE = 4096  # if no consumer has that many inputs, layers are processed in parallel on a CPU


class Observed:
    """Moments, importance scores and traits of the dense model on the calibration part.

    Missing files are written layer by layer. On a CPU, scores and spectra of several small layers
    are computed together, after these layers have run. Memory: the model, and one layer's matrices
    (on a CPU, those of several small layers). Ranks compute different layers, and exchange hidden
    states on disk.

    Args:
        lm: the dense model, whose weights are in their original order.
        windows: windows of the calibration part.
        first: further first tokens of windows (see `TokenWeights`); there may be none.
        artefacts: where the files lie, and the ranks that share them.
        statistics: signature of the moments.
        order: signature of the scores.
        spectra: whether the traits include the exponents of weight spectra.
        query_heads: whether query heads are scored, instead of KV groups.
    """

    def __init__(
        self,
        lm: LanguageModel,
        windows: Int[Tensor, "windows window"],
        first: Int[Tensor, "tokens 1"],
        importance: Importance,
        artefacts: Artefacts,
        *,
        statistics: str,
        order: str,
        spectra: bool = True,
        query_heads: bool = False,
    ) -> None:
        self._spectra, self._query_heads = spectra, query_heads
        self.lm, self._importance, self._ranks = lm, importance, artefacts.ranks
        self.windows, self.first = windows, first
        self._weights = TokenWeights.of(windows, first)
        self._streams = dict[str, LayerStream]()
        self._layers = range(len(lm.adapter.layers(lm.model)))
        self._layer_of = [coupling.layer for coupling in lm.couplings]
        folder, fields = artefacts.folder, [field.name for field in dataclasses.fields(Traits)]
        traits = signature("traits", statistics, fields)
        self._states = folder / "statistics" / f"{statistics}-states"
        self._moments = LayerFiles(folder / "statistics" / statistics, self._make_moments)
        self._scores = LayerFiles(folder / "importance" / order, self._make_scores)
        self._traits = LayerFiles(folder / "traits" / traits, self._make_traits)
        self._exponents = LayerFiles(
            folder / "traits" / f"{traits}-spectra",
            lambda layer: {"exponents": layer_exponent(lm, layer)},
        )

    @property
    def statistics(self) -> Statistics:
        """The moments; each is read from disk when it is used."""
        gram, mean = (StoredTensors(self._moments, self._layer_of, f"{m}.{{}}") for m in MOMENTS)
        return Statistics(gram, mean)

    def scores(self) -> list[Float[Tensor, " _"]]:
        """The scores of each coupling's atoms, or of its query heads."""
        return list(StoredTensors(self._scores, self._layer_of, "{:04}"))

    def traits(self) -> Traits:
        """The traits of the dense model."""
        files = [self._traits, self._exponents] if self._spectra else [self._traits]
        return Traits.of_layers(
            [{k: v for file in files for k, v in file.read(i).items()} for i in self._layers]
        )

    def make(self) -> None:
        """Makes the files that are missing.

        Raises:
            PPFError: a file cannot be written.
        """
        if on_rank_0(self._ranks, lambda: any(f.missing(self._layers) for f in self._files)):
            self._make_layers()
        if self._ranks.is_global_zero:  # by now every layer has all of its files
            shutil.rmtree(self._states, ignore_errors=True)

    def _make_layers(self) -> None:
        if self._moments.missing(self._layers) or self._traits.missing(self._layers):
            tokens = self.windows.numel() + len(self.first)
            say(f"Running the dense model on {tokens} tokens, layer by layer.")
        if self._importance.observes:
            on_rank_0(self._ranks, self._score_all)
        waiting = list[int]()
        for layer in track(own_first(self._layers, self._ranks), "Preparing the layers"):
            self._observe(layer)
            waiting.append(layer)
            if len(waiting) == self._at_once:
                self._solve(waiting)
                waiting = []
        self._solve(waiting)
        self._streams.clear()

    @property
    def _files(self) -> tuple[LayerFiles, ...]:
        exponents = (self._exponents,) if self._spectra else ()
        return self._moments, self._scores, self._traits, *exponents

    @cached_property
    def _at_once(self) -> int:
        """Layers whose matrices are processed side by side, on one thread each."""
        widest = max(coupling.consumer.in_features for coupling in self.lm.couplings)
        small = self.lm.device.type == "cpu" and widest < _WIDE
        return torch.get_num_threads() if small else 1

    def _stream(self, name: str, windows: Int[Tensor, "windows window"]) -> LayerStream:
        if name not in self._streams:
            shared = self._states / name if self._ranks.world_size > 1 else None
            self._streams[name] = LayerStream(self.lm, windows, shared)
        return self._streams[name]

    @cached_property
    def _scorer(self) -> Importance:
        couplings = self.lm.couplings
        if self._query_heads:
            couplings = [coupling.by_query() for coupling in couplings]
        self._importance.observe(self.lm, couplings, self.windows)
        return self._importance

    def _observe(self, layer: int) -> None:
        """Runs the layers up to this one that no process has run."""
        for earlier in range(layer + 1):
            self._moments.ensure(earlier)
            self._traits.ensure(earlier)

    def _score_all(self) -> None:
        for layer in self._layers:
            self._observe(layer)
            self._scores.ensure(layer)

    def _solve(self, layers: Sequence[int]) -> None:
        """Makes scores and spectra of some layers; several are processed at once."""
        alone = len(layers) < 2
        with nullcontext() if alone else cpu_threads(1), ThreadPoolExecutor(self._at_once) as pool:
            for files in self._files[1:]:
                list(pool.map(files.ensure, layers))

    def _make_moments(self, layer: int) -> dict[str, Tensor]:
        streams = [self._stream("windows", self.windows)]
        if len(self.first):
            streams.append(self._stream("first", self.first))
        return layer_moments(self.lm, streams, self._weights, layer)

    def _make_traits(self, layer: int) -> dict[str, Tensor]:
        return layer_traits(self.lm, self._stream("some", self.windows[::_STRIDE]), layer)

    def _make_scores(self, layer: int) -> dict[str, Tensor]:
        numbers = [i for i, owner in enumerate(self._layer_of) if owner == layer]
        moments = self._moments.read(layer)
        return {
            f"{i:04}": score_coupling(
                self.lm,
                self._scorer,
                self.lm.couplings[i],
                *(moments[f"{moment}.{i}"] for moment in MOMENTS),
                query_heads=self._query_heads,
            )
            for i in numbers
        }


def reads_spectra(cfg: DictConfig) -> bool:
    """Whether a config names AlphaPruning, the one rule that reads the spectra of weights."""
    return f"{AlphaPruning.__module__}.{AlphaPruning.__name__}" in OmegaConf.to_yaml(cfg)


def observe(cfg: DictConfig, fabric: Fabric) -> tuple[Text, Observed]:
    """Loads text and model, and makes missing moments, importance scores and traits.

    Args:
        cfg: with model, text, space, importance and paths.

    Raises:
        PPFError: the model is missing or damaged, or the text is too short.
    """
    config, names = recorded(cfg, fabric.device), signatures(cfg, fabric.device)
    text = build_text(config.text, cfg.paths.cache)
    if config.text.path:
        _ = text.parts  # damaged files are refused before the model is loaded
    lm = load(config.model, cfg.paths.cache, device=fabric.device, window=text.window)
    windows, _ = (text.tokens(part, lm.tokenizer) for part in ("calibration", "labelling"))
    first = text.first_tokens("calibration", lm.tokenizer, FIRST_TOKENS)
    observed = Observed(
        lm,
        windows,
        first,
        instantiate(config.importance),
        Artefacts(Path(cfg.paths.artefacts), fabric),
        statistics=names.statistics,
        order=names.order,
        spectra=reads_spectra(cfg),
        query_heads=scores_query_heads(cfg),
    )
    observed.make()
    return text, observed
