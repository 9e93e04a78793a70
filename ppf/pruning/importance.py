"""Importance scores of the atoms (KV groups or FFN channels) of a site."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm import Coupling, LanguageModel, differentiate
from ppf.pruning.statistics import by_atom, damped, expand
from ppf.ranges import Count, Positive, Seed
from ppf.space import Space


class Importance(ABC):
    """Scores the atoms of one coupling. Atoms of low score are pruned first.

    Attributes:
        observes: whether `observe` runs the model; it then needs all layers at once.
    """

    observes: ClassVar[bool] = False

    def observe(self, lm: LanguageModel, windows: Int[Tensor, "windows window"]) -> None:  # noqa: B027
        """Collects further data from the dense model on calibration text, if a score needs it."""

    @abstractmethod
    def scores(
        self,
        coupling: Coupling,
        gram: Float[Tensor, "columns columns"],
        mean: Float[Tensor, " columns"],
    ) -> Float[Tensor, " atoms"]:
        """The scores of a coupling's atoms.

        Args:
            coupling: the coupling.
            gram: E[x xᵀ] of the consumer's inputs.
            mean: E[x].
        """


class Magnitude(Importance):
    """Squared norm of all weights of an atom."""

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        total = by_atom(coupling, coupling.consumer.weight.float().square().sum(0))
        for producer in coupling.producers:
            rows = producer.linear.weight.float().square().sum(1)
            total = total + rows.view(coupling.atoms, producer.rows).sum(1)
        return total


class Wanda(Importance):
    """Squared weight times squared input norm, summed over an atom's columns of the consumer.

    Source: Wanda-sp as defined in FLAP (arXiv 2312.11983); the metric is Wanda's (arXiv
        2306.11695).
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        return by_atom(coupling, weight * gram.diagonal())


class Fluctuation(Importance):
    """Variance of an input times the squared norm of its column, summed over an atom's columns.

    Source: FLAP (arXiv 2312.11983), the WIFV metric.
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        variance = (gram.diagonal() - mean.square()).clamp_min(0)
        return by_atom(coupling, weight * variance)


class Taylor(Importance):
    """Squared first-order change of the loss if an atom is removed, summed over windows.

    The change of a window is Σ x · ∂loss/∂x over its tokens and the atom's columns of the consumer.

    Source: Molchanov et al. (arXiv 1906.10771); for groups of weights as in LLM-Pruner (arXiv
        2305.11627).
    """

    observes = True

    def observe(self, lm: LanguageModel, windows: Tensor) -> None:
        self._squared = {
            c.name: torch.zeros(c.atoms, device=lm.device_of(c.layer)) for c in lm.couplings
        }
        hooks = [
            c.consumer.register_forward_pre_hook(partial(self._watch, c)) for c in lm.couplings
        ]
        differentiate(lm, windows, _next_token_loss, "Differentiating", hooks)

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        return self._squared[coupling.name]

    def _watch(self, coupling: Coupling, consumer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]

        def add(gradient: Tensor) -> None:
            change = (x.detach().float() * gradient.float()).flatten(0, -2).sum(0)
            self._squared[coupling.name] += by_atom(coupling, change).square()

        if x.requires_grad:
            x.register_hook(add)


def _next_token_loss(logits: Tensor, window: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:-1], window[1:])


class OBS(Importance):
    """Optimal brain surgeon: in each round, removes the atoms that add the least error.

    Removing the columns S adds tr(W_S (H_SS)⁻¹ W_Sᵀ) to the squared output error, where H is the
    inverse of G + λI. After each round, the remaining columns are refitted and H is updated. The
    score of an atom is the number of its round, plus half its added error relative to the largest
    one of the round.

    Args:
        damping: λ as a fraction of the mean diagonal of G (see `damped`).
        rounds: number of rounds; each removes about the same number of atoms.

    Source: SlimGPT (arXiv 2412.18110), after Hassibi & Stork (1992).
    """

    def __init__(self, damping: Positive, rounds: Count) -> None:
        self.damping, self.rounds = damping, rounds

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        size = coupling.columns
        weight = coupling.consumer.weight.double()
        # Removing an input that is always zero adds no error, but damping would add one.
        weight = weight * (gram.diagonal() > 0)
        gram, _ = damped(gram, self.damping)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        scores = torch.empty(coupling.atoms, device=weight.device)
        here = torch.arange(coupling.atoms, device=weight.device)  # the atoms of the columns
        gone = torch.zeros_like(here, dtype=torch.bool)
        parts = here.tensor_split(min(self.rounds, coupling.atoms))
        for number, part in enumerate(parts):
            added = _added_errors(weight, inverse, size).masked_fill_(gone, torch.inf)
            out = added.argsort(stable=True)[: len(part)]
            share = added[out] / added[out].max().clamp_min(_SMALLEST)
            scores[here[out]] = number + share.float() / 2
            gone[out] = True
            _eliminate(weight, inverse, expand(out, size))
            if number % _COMPACT == _COMPACT - 1:
                stay = (~gone).nonzero()[:, 0]
                kept = expand(stay, size)
                weight, inverse = weight[:, kept], inverse[kept][:, kept]
                here, gone = here[stay], gone[stay]
        return scores


def _eliminate(weight: Tensor, inverse: Tensor, pruned: Int[Tensor, " columns"]) -> None:
    """Refits the other columns and updates H in place; pruned columns become unit vectors."""
    update = torch.linalg.solve(inverse[pruned][:, pruned], inverse[pruned])
    weight.addmm_(weight[:, pruned], update, alpha=-1)
    inverse.addmm_(inverse[:, pruned], update, alpha=-1)
    weight[:, pruned], inverse[:, pruned], inverse[pruned] = 0, 0, 0
    inverse.diagonal()[pruned] = 1


def _added_errors(weight: Tensor, inverse: Tensor, size: int) -> Float[Tensor, " atoms"]:
    """Squared output error that each atom's removal adds after the others are refitted."""
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal()
    atoms = len(inverse) // size
    own = inverse.view(atoms, size, atoms, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(len(weight), atoms, size).permute(1, 2, 0)
    solved = torch.cholesky_solve(columns, torch.linalg.cholesky(own))  # batched LU can fail
    return (columns * solved).sum((1, 2))


class RandomOrder(Importance):
    """Random scores, as a baseline for other orders.

    Args:
        seed: seed of the scores; every coupling draws its own.
    """

    def __init__(self, seed: Seed) -> None:
        self.seed = seed

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        block = 2 * coupling.layer + (coupling.kind == "mlp")
        generator = torch.Generator().manual_seed(self.seed * 100_003 + block)
        return torch.rand(coupling.atoms, generator=generator)


@torch.no_grad()
def score_coupling(
    lm: LanguageModel,
    importance: Importance,
    coupling: Coupling,
    gram: Float[Tensor, "columns columns"],
    mean: Float[Tensor, " columns"],
) -> Float[Tensor, " atoms"]:
    """The scores of one coupling's atoms. Call `importance.observe` before, if it `observes`."""
    with lm.resident(coupling.layer):
        device = lm.device_of(coupling.layer)
        moments = gram.to(device), mean.to(device)
        unused = Wanda().scores(coupling, *moments) == 0
        scores = importance.scores(coupling, *moments).float().cpu()
    return scores.masked_fill(unused.cpu(), 0)


def order_atoms(scores: Sequence[Float[Tensor, " _"]]) -> list[Int[Tensor, " _"]]:
    """The atoms of each coupling, from most to least important."""
    return [score.argsort(descending=True, stable=True) for score in scores]


def retained_importance(
    lm: LanguageModel, space: Space, scores: Sequence[Float[Tensor, " _"]]
) -> Float[Tensor, "sites levels"]:
    """The share of a site's importance that its first k units have, [site, k]."""
    shares = []
    for site, index in zip(space.sites, lm.coupling_indices(space.sites), strict=True):
        whole = nn.functional.pad(scores[index].sort(descending=True).values.cumsum(0), (1, 0))
        shares.append(whole[:: site.atoms_per_unit] / whole[-1].clamp_min(_SMALLEST))
    return nn.utils.rnn.pad_sequence(shares, True)


_COMPACT = 8  # rounds after which pruned columns are removed from the matrices
_SMALLEST = 1e-30  # smallest divisor; a site without importance retains 0
