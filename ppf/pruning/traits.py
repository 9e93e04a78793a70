"""Traits of the dense model, which allocation rules read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ppf.llm import Coupling, LanguageModel, LayerStream
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
        exponents: exponent of the power law of a layer's weight spectra, mean over its matrices;
            None: not computed.
        energy: for each site ("3.mlp"), ‖output‖² / (‖output‖² + ‖hidden state that enters the
            layer‖²), mean over tokens.
        fluctuation: for each site, the score of each atom: input variance times squared column
            norm (squared for attention), standardised over the site's columns, mean over the atom's
            columns.
    """

    influence: Float[Tensor, " layers"]
    outliers: Float[Tensor, "layers multiples"]
    exponents: Float[Tensor, " layers"] | None
    energy: dict[str, Float[Tensor, ""]]
    fluctuation: dict[str, Float[Tensor, " _"]]

    @classmethod
    def of_layers(cls, layers: Sequence[Mapping[str, Tensor]]) -> "Traits":
        """Joins the results of `layer_traits`, and of `layer_exponent` if any, over the layers."""
        by_site: dict[str, dict[str, Tensor]] = {"energy": {}, "fluctuation": {}}
        for key, tensor in (item for found in layers for item in found.items()):
            name, _, site = key.partition(".")
            if site:
                by_site[name][site] = tensor
        names = [key for key in layers[0] if "." not in key]
        stacked = {name: torch.stack([found[name] for found in layers]) for name in names}
        return cls(stacked["influence"], stacked["outliers"], stacked.get("exponents"), **by_site)


@torch.inference_mode()
def layer_traits(lm: LanguageModel, stream: LayerStream, layer: int) -> dict[str, Tensor]:
    """The traits of one layer and its sites, except the exponent, by the names of `Traits`.

    Args:
        lm: the dense model.
        stream: windows of the calibration part.
        layer: the layer.
    """
    couplings = _couplings(lm, layer)
    mean, square, added, influence = _observe(lm, stream, layer)
    found = {"influence": influence}
    with lm.resident(layer):
        scores = [w.weight.float().abs() * square[w].sqrt() for w in _linears(couplings)]
        found["outliers"] = _outliers(scores)
        for c in couplings:
            variance = square[c.consumer] - mean[c.consumer].square()
            found[f"fluctuation.{c.name}"] = _fluctuation(c, variance)
            found[f"energy.{c.name}"] = added[_last(lm, c)]
    return {name: tensor.cpu() for name, tensor in found.items()}


@torch.inference_mode()
def layer_exponent(lm: LanguageModel, layer: int) -> Float[Tensor, ""]:
    """The mean exponent of the power laws of a layer's weight spectra."""
    linears = _linears(_couplings(lm, layer))
    with lm.resident(layer):
        return torch.stack([_exponent(linear.weight.float()) for linear in linears]).mean().cpu()


def _couplings(lm: LanguageModel, layer: int) -> list[Coupling]:
    return [coupling for coupling in lm.couplings if coupling.layer == layer]


def _linears(couplings: Sequence[Coupling]) -> list[nn.Linear]:
    """The projections; blocks may share some."""
    return list(dict.fromkeys(linear for c in couplings for linear in c.linears))


def _last(lm: LanguageModel, coupling: Coupling) -> nn.Module:
    """The module whose output a site adds to the residual stream."""
    return lm.adapter.norm_behind(coupling) or coupling.consumer


Moments = dict[nn.Module, Tensor]


def _observe(
    lm: LanguageModel, stream: LayerStream, layer: int
) -> tuple[Moments, Moments, Moments, Float[Tensor, ""]]:
    """E[x] and E[x²] of each projection's input, energy of each site, the layer's influence."""
    couplings, module = _couplings(lm, layer), lm.adapter.layers(lm.model)[layer]
    linears, device = _linears(couplings), lm.device_of(layer)
    mean: Moments = {w: torch.zeros(w.in_features, device=device) for w in linears}
    square: Moments = {w: torch.zeros_like(zeros) for w, zeros in mean.items()}
    added: Moments = {_last(lm, c): torch.zeros((), device=device) for c in couplings}
    entered: list[Tensor] = []

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered.append(inputs[0].float())

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()
        mean[module].add_(x.sum(0), alpha=1 / stream.tokens)
        square[module].add_(x.square().sum(0), alpha=1 / stream.tokens)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own, state = (
            x.float().square().sum(-1).flatten() for x in (output, entered[-1].to(device))
        )
        share = own / (own + state).clamp_min(_SMALLEST)
        added[module].add_(share.sum(), alpha=1 / stream.tokens)

    hooks = [module.register_forward_pre_hook(enter)]
    hooks += [linear.register_forward_pre_hook(read) for linear in linears]
    hooks += [last.register_forward_hook(add) for last in added]
    try:
        left = stream.run(layer)
    finally:
        for handle in hooks:
            handle.remove()
    influence = torch.zeros((), device=lm.device)
    for before, after in zip(entered, left, strict=True):
        influence += (1 - cosine_similarity(before, after.float(), dim=-1)).sum() / stream.tokens
    return mean, square, added, influence


def _outliers(scores: list[Tensor]) -> Float[Tensor, " multiples"]:
    whole = torch.cat([score.flatten() for score in scores])
    mean = whole.mean()
    return (
        torch.stack([(whole > m * mean).count_nonzero() for m in range(MULTIPLES)]) / whole.numel()
    )


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


_SMALLEST = 1e-12
