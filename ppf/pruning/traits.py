"""Traits of the dense model, which allocation rules read."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ppf.llm import Coupling, LanguageModel
from ppf.progress import track
from ppf.pruning.statistics import by_atom
from ppf.threads import cpu_threads

MULTIPLES = 16  # outliers are counted for the multiples 0 … 15 of the mean score
_BINS = 100  # bins of the histogram whose peak is the start of a spectrum's tail


@dataclass(frozen=True)
class Traits:
    """Traits of layers and sites. They do not depend on the order of the atoms.

    Args:
        influence: 1 − mean cosine similarity of the hidden states that enter and leave a layer.
        outliers: share of a layer's scores |W_ij| ‖X_j‖ that exceed m times their mean, [layer, m].
        exponents: exponent of the power law of a layer's weight spectra, mean over its matrices.
        energy: for each site ("3.mlp"), ‖output‖² / (‖output‖² + ‖hidden state that enters the
            layer‖²), mean over tokens.
        fluctuation: for each site, the input variance of each atom times its squared column norm,
            standardised over the site.
    """

    influence: Float[Tensor, " layers"]
    outliers: Float[Tensor, "layers multiples"]
    exponents: Float[Tensor, " layers"]
    energy: dict[str, Float[Tensor, ""]]
    fluctuation: dict[str, Float[Tensor, " _"]]

    def tensors(self) -> dict[str, Tensor]:
        """The traits by name, for a safetensors file."""
        named = {name: getattr(self, name) for name in ("influence", "outliers", "exponents")}
        for name in _BY_SITE:
            named |= {f"{name}.{site}": tensor for site, tensor in getattr(self, name).items()}
        return named

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "Traits":
        """The inverse of `tensors`."""
        by_site: dict[str, dict[str, Tensor]] = {name: {} for name in _BY_SITE}
        layers = {}
        for key, tensor in named.items():
            name, _, site = key.partition(".")
            if site:
                by_site[name][site] = tensor
            else:
                layers[name] = tensor
        return cls(**layers, energy=by_site["energy"], fluctuation=by_site["fluctuation"])


@torch.inference_mode()
def collect_traits(lm: LanguageModel, windows: Int[Tensor, "windows window"]) -> Traits:
    """Runs the dense model once over the calibration windows, and reads its weights.

    Args:
        lm: the dense model.
        windows: windows of the calibration part.
    """
    mean, square, added, influence = _observe(lm, windows)
    outliers, exponents, energy, fluctuation = [], [], {}, {}
    layers = groupby(lm.couplings, key=lambda coupling: coupling.layer)
    for _, group in track(layers, "Reading the layers", len(influence)):
        couplings = list(group)
        linears = dict.fromkeys(linear for c in couplings for linear in _linears(c))
        outliers.append(_outliers([w.weight.float().abs() * square[w].sqrt() for w in linears]))
        exponents.append(torch.stack([_exponent(w.weight.float()) for w in linears]).mean())
        for c in couplings:
            variance = square[c.consumer] - mean[c.consumer].square()
            fluctuation[c.name] = _fluctuation(c, variance).cpu()
            energy[c.name] = added[c.consumer].cpu()
    return Traits(
        influence.cpu(),
        torch.stack(outliers).cpu(),
        torch.stack(exponents).cpu(),
        energy,
        fluctuation,
    )


def _linears(coupling: Coupling) -> list[nn.Linear]:
    return [*(producer.linear for producer in coupling.producers), coupling.consumer]


Moments = dict[nn.Module, Tensor]


def _observe(lm: LanguageModel, windows: Tensor) -> tuple[Moments, Moments, Moments, Tensor]:
    """E[x] and E[x²] of each projection's input, energy of each consumer, influence of layers."""
    linears = {linear for coupling in lm.couplings for linear in _linears(coupling)}
    mean: Moments = {w: torch.zeros(w.in_features, device=lm.device) for w in linears}
    square: Moments = {w: torch.zeros_like(zeros) for w, zeros in mean.items()}
    added: Moments = {c.consumer: torch.zeros((), device=lm.device) for c in lm.couplings}
    stops = [*lm.adapter.layers(lm.model), lm.adapter.final_norm(lm.model)]
    influence = torch.zeros(len(stops) - 1, device=lm.device)
    entered: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()
        mean[module].add_(x.sum(0), alpha=1 / windows.numel())
        square[module].add_(x.square().sum(0), alpha=1 / windows.numel())

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own, state = (x.float().square().sum(-1).flatten() for x in (output, entered[0]))
        share = own / (own + state).clamp_min(_SMALLEST)
        added[module].add_(share.sum(), alpha=1 / windows.numel())

    def enter(index: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            state = inputs[0].float()
            if index:
                turn = 1 - cosine_similarity(entered.pop(), state, dim=-1)
                influence[index - 1] += turn.sum() / windows.numel()
            entered[:] = [state]

        return hook

    hooks = [linear.register_forward_pre_hook(read) for linear in linears]
    hooks += [stop.register_forward_pre_hook(enter(i)) for i, stop in enumerate(stops)]
    hooks += [consumer.register_forward_hook(add) for consumer in added]
    try:
        for batch in track(windows.to(lm.device).split(4), "Observing the dense model"):
            lm.model(batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in hooks:
            handle.remove()
    return mean, square, added, influence


def _outliers(scores: list[Tensor]) -> Float[Tensor, " multiples"]:
    whole = torch.cat([score.flatten() for score in scores])
    mean = whole.mean()
    return torch.stack([(whole > m * mean).float().mean() for m in range(MULTIPLES)])


def _exponent(weight: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """Hill estimator of the power-law exponent of the eigenvalues of WᵀW.

    The tail starts at the peak of the histogram of their logarithms.

    Source: PL_Alpha_Hill of AlphaPruning (arXiv 2410.10912), with its "fix-finger" tail.
    """
    narrow = weight.double() if len(weight) <= len(weight.T) else weight.double().T
    with cpu_threads(1):  # on a busy machine, LAPACK's threads wait seconds for each other
        logs = torch.linalg.eigvalsh(narrow @ narrow.T).clamp_min(_SMALLEST).log().cpu()
    low, high = float(logs.min()), float(logs.max())
    peak = low + (high - low) * int(torch.histc(logs, _BINS, low, high).argmax()) / _BINS
    tail = logs[logs >= peak] - peak
    return 1 + len(tail) / tail.sum().clamp_min(_SMALLEST)


def _fluctuation(
    coupling: Coupling, variance: Float[Tensor, " columns"]
) -> Float[Tensor, " atoms"]:
    """FLAP's standardised WIFV metric. As in FLAP, attention scores are squared first."""
    score = variance * coupling.consumer.weight.float().square().sum(0)
    if coupling.kind == "attention":
        score = score.square()
    standard = (score - score.mean()) / score.std().clamp_min(_SMALLEST)
    return by_atom(coupling, standard) / coupling.columns


_BY_SITE = ("energy", "fluctuation")
_SMALLEST = 1e-12
