"""Importance scores of the atoms (KV groups or FFN channels) of a site."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm import Coupling, LanguageModel, differentiate
from ppf.pruning.statistics import add_symmetric, by_atom, damped, expand, mirrored
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
        watch = partial(self._watch, windows.shape[1])
        hooks = [c.consumer.register_forward_pre_hook(partial(watch, c)) for c in lm.couplings]
        differentiate(lm, windows, "Differentiating", hooks)

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        return self._squared[coupling.name]

    def _watch(
        self, window: int, coupling: Coupling, consumer: nn.Linear, inputs: tuple[Tensor, ...]
    ) -> None:
        x = inputs[0]  # OPT flattens the inputs of its FFN

        def add(gradient: Tensor) -> None:
            changes = x.detach().float() * gradient.float()
            for change in changes.view(-1, window, x.shape[-1]).sum(1) / (window - 1):
                self._squared[coupling.name] += by_atom(coupling, change).square()

        if x.requires_grad:
            x.register_hook(add)


class OBS(Importance):
    """Optimal brain surgeon: in each round, removes the atoms that add the least error.

    Removing the columns S adds tr(W_S (H_SS)⁻¹ W_Sᵀ) to the squared output error, where H is the
    inverse of G + λI. After each round, the remaining columns are refitted and H is updated. The
    score of an atom is the number of its round, plus half its added error relative to the largest
    one of the round.

    The rounds are a Cholesky factorisation of H in blocks, whose pivots are the removed columns: a
    round computes only their rows of H from the rounds before it.

    Args:
        damping: λ as a fraction of the mean diagonal of G (see `damped`).
        rounds: number of rounds; each removes about the same number of atoms.

    Source: SlimGPT (arXiv 2412.18110), after Hassibi & Stork (1992).
    """

    def __init__(self, damping: Positive, rounds: Count) -> None:
        self.damping, self.rounds = damping, rounds

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        size = coupling.columns
        # Removing an input that is always zero adds no error, but damping would add one.
        weight = coupling.consumer.weight.double() * (gram.diagonal() > 0)
        inverse = inverted(damped(gram, self.damping)[0])
        scores = torch.empty(coupling.atoms, device=weight.device)
        here = torch.arange(coupling.atoms, device=weight.device)  # removed atoms, then the others
        rows = weight.T.contiguous()  # of W refitted, one for each column in the order of `here`
        factor = torch.empty_like(inverse)  # the factor of H, one row for each column
        own = _diagonal_blocks(inverse, size)
        start = 0
        for number, part in enumerate(here.tensor_split(min(self.rounds, coupling.atoms))):
            stop = start + len(part)
            added = torch.full_like(own[:, 0, 0], torch.inf)
            added[here[start:]] = _added_errors(rows[start * size :], own[start:])
            out = added.argsort(stable=True)[: len(part)]
            share = added[out] / added[out].max().clamp_min(_SMALLEST)
            scores[out] = number + share.float() / 2

            moved, source = _to_place(here.argsort()[out], start)
            here[moved], own[moved] = here[source], own[source]
            moved, source = expand(moved, size), expand(source, size)
            done, end = start * size, stop * size
            rows[moved], factor[moved, :done] = rows[source], factor[source, :done]

            left_over, out = expand(here[start:], size), expand(here[start:stop], size)
            block = inverse[out][:, left_over].T
            block.addmm_(factor[done:, :done], factor[done:end, :done].T, alpha=-1)
            pivot = torch.linalg.cholesky(block[: end - done])
            block = torch.linalg.solve_triangular(pivot.T, block, upper=True, left=False)
            factor[done:, done:end] = block
            left = block[end - done :]
            solved = torch.linalg.solve_triangular(pivot, rows[done:end], upper=False)
            rows[end:].addmm_(left, solved, alpha=-1)
            own[stop:] -= torch.einsum("aik,ajk->aij", *2 * [left.view(-1, size, end - done)])
            start = stop
        return scores


def inverted(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The inverse of a symmetric positive definite matrix, of which it reads the lower triangle.

    Large ones are inverted by their blocks and the Schur complement. These products take about half
    of the time of LAPACK's routine.
    """
    if len(matrix) <= _SMALL:
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    half = len(matrix) // 2
    first = inverted(matrix[:half, :half])
    slope, rest = matrix[half:, :half] @ first, matrix[half:, half:].clone()
    add_symmetric(rest, slope, matrix[half:, :half].T, -1.0)
    last = inverted(rest)
    inverse = torch.empty_like(matrix)
    inverse[half:, half:] = last
    mixed = torch.mm(last, slope, out=inverse[half:, :half]).neg_()
    inverse[:half, half:] = mixed.T
    add_symmetric(first, slope.T, mixed, -1.0)
    inverse[:half, :half] = mirrored(first)
    return inverse


def _to_place(
    chosen: Int[Tensor, " places"], start: int
) -> tuple[Int[Tensor, " moved"], Int[Tensor, " moved"]]:
    """The exchange that brings some places to `start` and behind it: what moves, and from where."""
    front = torch.arange(start, start + len(chosen), device=chosen.device)
    outside = chosen[~torch.isin(chosen, front)]
    free = front[~torch.isin(front, chosen)]
    return torch.cat([outside, free]), torch.cat([free, outside])


def _diagonal_blocks(matrix: Tensor, size: int) -> Float[Tensor, "atoms size size"]:
    atoms = len(matrix) // size
    blocks = matrix.view(atoms, size, atoms, size).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).contiguous()


def _added_errors(
    rows: Float[Tensor, "columns hidden"], own: Float[Tensor, "atoms size size"]
) -> Float[Tensor, " atoms"]:
    """Squared output error that each atom's removal adds after the others are refitted."""
    if own.shape[1] == 1:
        return rows.square().sum(1) / own[:, 0, 0]
    columns = rows.view(*own.shape[:2], -1)
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


_SMALL = 512  # rows of a matrix that LAPACK inverts
_SMALLEST = 1e-30  # smallest divisor; a site without importance retains 0
