"""Importance: which atoms (KV groups, FFN channels) of a site matter most."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm import Coupling, LanguageModel
from ppf.progress import track
from ppf.pruning.statistics import Statistics, by_atom, damped, expand
from ppf.space import Space


class Importance(ABC):
    """Scores the atoms of one coupling; higher stays longer."""

    def observe(self, lm: LanguageModel, windows: Int[Tensor, "windows window"]) -> None:  # noqa: B027
        """Looks at the dense model on calibration text, where the statistics do not suffice."""

    @abstractmethod
    def scores(
        self,
        coupling: Coupling,
        gram: Float[Tensor, "columns columns"],
        mean: Float[Tensor, " columns"],
    ) -> Float[Tensor, " atoms"]: ...


class Magnitude(Importance):
    """Squared norm of all weights that go with an atom."""

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        total = by_atom(coupling, coupling.consumer.weight.float().square().sum(0))
        for producer in coupling.producers:
            rows = producer.linear.weight.float().square().sum(1)
            total = total + rows.view(coupling.atoms, producer.rows).sum(1)
        return total


class Wanda(Importance):
    """Squared weight times squared activation norm, summed over an atom's columns of the consumer.

    Source: Wanda-sp as defined in FLAP (arXiv 2312.11983), on Wanda's metric (arXiv 2306.11695).
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        return by_atom(coupling, weight * gram.diagonal().to(weight.device))


class Fluctuation(Importance):
    """Variance of the input times the squared norm of its column.

    Source: FLAP (arXiv 2312.11983), the WIFV metric.
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        variance = (gram.diagonal() - mean.square()).clamp_min(0)
        return by_atom(coupling, weight * variance.to(weight.device))


class Taylor(Importance):
    """Squared first-order change of the loss when an atom goes, summed over windows.

    A window's change is Σ x · ∂loss/∂x over its tokens and the atom's columns of the consumer.

    Source: Molchanov et al. (arXiv 1906.10771), on groups as in LLM-Pruner (arXiv 2305.11627).
    """

    def observe(self, lm: LanguageModel, windows: Tensor) -> None:
        self._squared = {c.consumer: torch.zeros(c.atoms, device=lm.device) for c in lm.couplings}
        hooks = [
            c.consumer.register_forward_pre_hook(partial(self._watch, c)) for c in lm.couplings
        ]
        embeddings = lm.model.get_input_embeddings()
        hooks.append(embeddings.register_forward_hook(lambda *call: call[2].requires_grad_()))
        try:
            for window in track(windows.to(lm.device).split(1), "Differentiating"):
                lm.model(window, labels=window, use_cache=False).loss.backward()
        finally:
            for hook in hooks:
                hook.remove()

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        return self._squared[coupling.consumer]

    def _watch(self, coupling: Coupling, consumer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]

        def add(gradient: Tensor) -> None:
            change = (x.detach().float() * gradient.float()).flatten(0, -2).sum(0)
            self._squared[consumer] += by_atom(coupling, change).square()

        x.register_hook(add)


class OBS(Importance):
    """Optimal brain surgeon: how late an atom goes if the one of least added error goes first.

    Removing the columns S adds tr(W_S (H_SS)⁻¹ W_Sᵀ) to the squared output error, H being the
    inverse of G + λI; what stays is refitted and H downdated before the next removal. An atom's
    score is the round in which it goes, and within a round its added error.

    Args:
        damping: λ as a fraction of the mean diagonal of G.
        rounds: of removal, in which about equally many atoms go.

    Source: SlimGPT (arXiv 2412.18110), after Hassibi & Stork (1992).
    """

    def __init__(self, damping: float, rounds: int) -> None:
        self.damping, self.rounds = damping, rounds

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        size = coupling.columns
        weight = coupling.consumer.weight.double()
        gram = gram.to(weight.device)
        # Removing an input that is always zero adds no error; damping would charge for it.
        weight = weight * (gram.diagonal() > 0)
        gram, _ = damped(gram, self.damping)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        left = torch.arange(coupling.atoms, device=weight.device)
        scores = torch.empty(coupling.atoms, device=weight.device)
        for number, gone in enumerate(left.tensor_split(min(self.rounds, coupling.atoms))):
            added = _added_errors(weight, inverse, size)
            queue = added.argsort(stable=True)
            out, stay = queue[: len(gone)], queue[len(gone) :].sort().values
            share = added[out] / added[out].max().clamp_min(_SMALLEST)
            scores[left[out]] = number + share.float() / 2
            left, pruned, kept = left[stay], expand(out, size), expand(stay, size)
            update = torch.linalg.solve(inverse[pruned][:, pruned], inverse[pruned][:, kept])
            weight = weight[:, kept] - weight[:, pruned] @ update
            inverse = inverse[kept][:, kept] - inverse[kept][:, pruned] @ update
        return scores


def _added_errors(weight: Tensor, inverse: Tensor, size: int) -> Float[Tensor, " atoms"]:
    """Squared output error that each atom's removal adds, the rest being refitted."""
    atoms = len(inverse) // size
    own = inverse.view(atoms, size, atoms, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(len(weight), atoms, size).permute(1, 2, 0)
    solved = torch.cholesky_solve(columns, torch.linalg.cholesky(own))  # LU in batches can fail
    return (columns * solved).sum((1, 2))


class Random(Importance):
    """A random order, the floor of every comparison."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        block = 2 * coupling.layer + (coupling.kind == "mlp") + 1_000_003 * coupling.index
        generator = torch.Generator().manual_seed(self.seed * 100_003 + block)
        return torch.rand(coupling.atoms, generator=generator)


def score_atoms(
    lm: LanguageModel,
    importance: Importance,
    statistics: Statistics,
    windows: Int[Tensor, "windows window"],
) -> list[Float[Tensor, " _"]]:
    """Per coupling, the importance of its atoms; 0 for those that add nothing to the output.

    Args:
        windows: of the calibration part, from which the statistics are.
    """
    importance.observe(lm, windows)
    moments = list(zip(lm.couplings, statistics.gram, statistics.mean, strict=True))
    scores = []
    for coupling, gram, mean in track(moments, f"Scoring the atoms of {len(moments)} sites"):
        silent = Wanda().scores(coupling, gram, mean) == 0
        scores.append(
            importance.scores(coupling, gram, mean).float().cpu().masked_fill(silent.cpu(), 0)
        )
    return scores


def order_atoms(scores: Sequence[Float[Tensor, " _"]]) -> list[Int[Tensor, " _"]]:
    """Per coupling, its atoms from most to least important."""
    return [score.argsort(descending=True, stable=True) for score in scores]


def retained_importance(
    lm: LanguageModel, space: Space, scores: Sequence[Float[Tensor, " _"]]
) -> Float[Tensor, "sites levels"]:
    """The share of a site's importance in the k units that stay, [site, k]."""
    shares = []
    for site, place in zip(space.sites, lm.coupling_indices(space.sites), strict=True):
        whole = nn.functional.pad(scores[place].sort(descending=True).values.cumsum(0), (1, 0))
        shares.append(whole[:: site.atoms_per_unit] / whole[-1].clamp_min(_SMALLEST))
    return nn.utils.rnn.pad_sequence(shares, True)


_SMALLEST = 1e-30  # importance of a site; one that has none retains none
