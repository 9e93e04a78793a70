"""What pruning reads of a dense model, for all layers at once and without files.

The commands compute the same one layer at a time, in `ppf.pruning.observed`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm import LanguageModel, LayerStream
from ppf.pruning import Importance, Statistics, Traits
from ppf.pruning.importance import score_coupling
from ppf.pruning.statistics import TokenWeights, layer_moments
from ppf.pruning.traits import layer_exponent, layer_traits

NO_TOKENS = torch.zeros(0, 1, dtype=torch.long)
"""No further first tokens of windows."""
Windows = Int[Tensor, "windows window"]


def collect_statistics(
    lm: LanguageModel, windows: Windows, first: Int[Tensor, "tokens 1"] = NO_TOKENS
) -> Statistics:
    """The moments of all couplings."""
    streams = [LayerStream(lm, part) for part in (windows, first) if len(part)]
    weights, moments = TokenWeights.of(windows, first), dict[str, Tensor]()
    for layer in range(len(lm.adapter.layers(lm.model))):
        moments |= layer_moments(lm, streams, weights, layer)
    numbers = range(len(lm.couplings))
    return Statistics(*([moments[f"{name}.{i}"] for i in numbers] for name in ("gram", "mean")))


def collect_traits(lm: LanguageModel, windows: Windows) -> Traits:
    """The traits of all layers."""
    stream, layers = LayerStream(lm, windows), range(len(lm.adapter.layers(lm.model)))
    return Traits.of_layers(
        [layer_traits(lm, stream, i) | {"exponents": layer_exponent(lm, i)} for i in layers]
    )


def by_name(traits: Traits) -> dict[str, Tensor]:
    """The tensors of all traits."""
    found = {name: value for name, value in vars(traits).items() if isinstance(value, Tensor)}
    for name in ("energy", "fluctuation"):
        found |= {f"{name}.{site}": value for site, value in getattr(traits, name).items()}
    return found


def score_atoms(
    lm: LanguageModel,
    importance: Importance,
    statistics: Statistics,
    windows: Windows,
    *,
    query_heads: bool = False,
) -> list[Float[Tensor, " _"]]:
    """The scores of the atoms, or of the query heads, of each coupling."""
    scored = [c.by_query() for c in lm.couplings] if query_heads else lm.couplings
    importance.observe(lm, scored, windows)
    moments = zip(lm.couplings, statistics.gram, statistics.mean, strict=True)
    return [score_coupling(lm, importance, *of_one, query_heads=query_heads) for of_one in moments]
