"""Importance scores of the atoms (KV groups or FFN channels) of a site."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm import Coupling, LanguageModel, LayerStream, differentiate
from ppf.progress import track
from ppf.pruning.statistics import (
    add_symmetric,
    block_energies,
    by_atom,
    damped,
    expand,
    mirrored,
    squares,
)
from ppf.ranges import Count, Positive, Seed


class Importance(ABC):
    """Scores the atoms of one coupling. Atoms of low score are pruned first.

    Attributes:
        observes: whether `observe` runs the model; it then needs all layers at once.
    """

    observes: ClassVar[bool] = False

    def observe(  # noqa: B027
        self,
        lm: LanguageModel,
        couplings: Sequence[Coupling],
        windows: Int[Tensor, "windows window"],
    ) -> None:
        """Collects further data from the dense model on calibration text, if a score needs it.

        Args:
            couplings: whose atoms are scored.
        """

    @abstractmethod
    def scores(
        self,
        coupling: Coupling,
        gram: Float[Tensor, "*experts n n"],
        mean: Float[Tensor, " columns"],
    ) -> Float[Tensor, " atoms"]:
        """The scores of a coupling's atoms.

        Args:
            gram: E[x xᵀ] of the consumer's inputs; of a large mixture [experts, n, n].
            mean: E[x].
        """

    def removal(
        self,
        coupling: Coupling,
        gram: Float[Tensor, "columns columns"],
        mean: Float[Tensor, " columns"],
    ) -> "Removal":
        """What the removal of several atoms costs; the arguments are those of `scores`."""
        return Removal(self.scores(coupling, gram, mean).to(gram.device))


class Removal:
    """Errors of removing atoms one after another; here the sums of their scores.

    Args:
        scores: of the atoms.
    """

    def __init__(self, scores: Float[Tensor, " atoms"]) -> None:
        self._scores = scores

    def errors(self, atoms: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The error that each of these atoms adds if it alone is removed next."""
        return self._scores[atoms]

    def joint(self, atoms: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The error that these atoms add if all are removed next."""
        return self.errors(atoms).sum()

    def remove(self, atoms: Int[Tensor, " n"]) -> None:
        """Removes these atoms."""


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
        return by_atom(coupling, weight * squares(gram))


class Fluctuation(Importance):
    """Variance of an input times the squared norm of its column, summed over an atom's columns.

    Source: FLAP (arXiv 2312.11983), the WIFV metric.
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        variance = (squares(gram) - mean.square()).clamp_min(0)
        return by_atom(coupling, weight * variance)


class Taylor(Importance):
    """Squared first-order change of the loss if an atom is removed, summed over windows.

    The change of a window is Σ x · ∂loss/∂x over its tokens and the atom's columns of the consumer.

    Source: Molchanov et al. (arXiv 1906.10771); for groups of weights as in LLM-Pruner (arXiv
        2305.11627).
    """

    observes = True

    def observe(self, lm: LanguageModel, couplings: Sequence[Coupling], windows: Tensor) -> None:
        self._squared = {
            c.name: torch.zeros(c.atoms, device=lm.device_of(c.layer)) for c in couplings
        }
        watch = partial(self._watch, windows.shape[1])
        hooks = [c.consumer.register_forward_pre_hook(partial(watch, c)) for c in couplings]
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


class REAP(Importance):
    """Norm of what an expert adds to the tokens that have chosen it, mean over these tokens.

    The atoms of other blocks are scored as by `Wanda`.

    Source: REAP (arXiv 2510.13999).
    """

    observes = True

    def observe(self, lm: LanguageModel, couplings: Sequence[Coupling], windows: Tensor) -> None:
        mixtures = [coupling for coupling in couplings if coupling.kind == "experts"]
        devices = {c.name: lm.device_of(c.layer) for c in mixtures}
        # The sum of each expert's norms, and the number of its tokens.
        self._sums = {c.name: torch.zeros(2, c.atoms, device=devices[c.name]) for c in mixtures}
        hooks = [c.consumer.register_forward_pre_hook(partial(self._watch, c)) for c in mixtures]
        stream = LayerStream(lm, windows)
        try:
            for layer in track(range(len(lm.adapter.layers(lm.model))), "Measuring the experts"):
                stream.run(layer)
        finally:
            for hook in hooks:
                hook.remove()

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        if coupling.kind != "experts":
            return Wanda().scores(coupling, gram, mean)
        norms, tokens = self._sums[coupling.name]
        return norms / tokens.clamp_min(1)

    def _watch(self, coupling: Coupling, consumer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).unflatten(1, (coupling.atoms, -1))
        weights = consumer.weight.unflatten(1, (coupling.atoms, -1))
        for expert in range(coupling.atoms):
            own = x[:, expert][(x[:, expert] != 0).any(1)]
            added = nn.functional.linear(own, weights[:, expert])
            norms = added.float().norm(dim=1)
            self._sums[coupling.name][:, expert] += norms.new_tensor([norms.sum(), len(norms)])


class Frequency(REAP):
    """Number of tokens that have chosen an expert; the atoms of other blocks as by `Wanda`."""

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        if coupling.kind != "experts":
            return super().scores(coupling, gram, mean)
        return self._sums[coupling.name][1]


class OBS(Importance):
    """Optimal brain surgeon: in each round, removes the atoms that add the least error.

    Removing the columns S adds tr(W_S (H_SS)⁻¹ W_Sᵀ) to the squared output error, where H is the
    inverse of G + λI. After each round, the remaining columns are refitted and H is updated. The
    score of an atom is the number of its round, plus half its added error relative to the largest
    one of the round. Experts of a large mixture have their added errors as scores.

    The rounds are a Cholesky factorisation of H in blocks, whose pivots are the removed columns: a
    round computes only their rows of H from the rounds before it.

    Args:
        damping: λ as a fraction of the mean diagonal of G (see `damped`).
        rounds: number of rounds; each removes about the same number of atoms.

    Source: SlimGPT (arXiv 2412.18110), after Hassibi & Stork (1992).
    """

    def __init__(self, damping: Positive, rounds: Count) -> None:
        self.damping, self.rounds = damping, rounds

    def removal(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> "Removal":
        return _Surgery(*self._problem(coupling, gram), coupling.columns)

    def _problem(self, coupling: Coupling, gram: Tensor) -> tuple[Tensor, Tensor]:
        """The consumer's weight and H, in float64."""
        # Removing an input that is always zero adds no error, but damping would add one.
        weight = coupling.consumer.weight.double() * (gram.diagonal() > 0)
        return weight, inverted(damped(gram, self.damping)[0])

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        size = coupling.columns
        if gram.dim() == 3:  # no expert can replace another
            return block_energies(coupling.consumer.weight, gram)
        weight, inverse = self._problem(coupling, gram)
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


class _Surgery(Removal):
    """Errors after the columns that are left have been refitted.

    Args:
        weight: of the consumer, [hidden, columns].
        inverse: H, [columns, columns].
        size: number of columns of an atom.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, size: int) -> None:
        self._rows, self._inverse, self._size = weight.T.contiguous(), inverse, size

    def errors(self, atoms: Tensor) -> Tensor:
        own = _diagonal_blocks(self._inverse, self._size)[atoms]
        return _added_errors(self._rows[expand(atoms, self._size)], own)

    def joint(self, atoms: Tensor) -> Tensor:
        columns = expand(atoms, self._size)
        return _added_errors(self._rows[columns], self._inverse[columns][:, columns][None])[0]

    def remove(self, atoms: Tensor) -> None:
        columns = expand(atoms, self._size)
        mixed = self._inverse[columns]
        slope = torch.cholesky_solve(mixed, torch.linalg.cholesky(mixed[:, columns])).T
        self._rows -= slope @ self._rows[columns]
        self._inverse -= slope @ mixed


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
        block = 2 * coupling.layer + (coupling.kind != "attention")
        generator = torch.Generator().manual_seed(self.seed * 100_003 + block)
        return torch.rand(coupling.atoms, generator=generator)


@torch.no_grad()
def score_coupling(
    lm: LanguageModel,
    importance: Importance,
    coupling: Coupling,
    gram: Float[Tensor, "*experts n n"],
    mean: Float[Tensor, " columns"],
    *,
    query_heads: bool = False,
) -> Float[Tensor, " _"]:
    """The scores of one coupling's atoms, or of its query heads.

    Call `importance.observe` before, if it `observes`.

    Args:
        query_heads: scores the query heads of KV groups that have several (see `step_scores`).
    """
    with lm.resident(coupling.layer):
        device = lm.device_of(coupling.layer)
        moments = gram.to(device), mean.to(device)
        if query_heads and coupling.queries > 1:
            return step_scores(importance, coupling, *moments).float().cpu()
        unused = Wanda().scores(coupling, *moments) == 0
        scores = importance.scores(coupling, *moments).float().cpu()
    return scores.masked_fill(unused.cpu(), 0)


def step_scores(
    importance: Importance,
    coupling: Coupling,
    gram: Float[Tensor, "columns columns"],
    mean: Float[Tensor, " columns"],
) -> Float[Tensor, " heads"]:
    """The order in which the query heads of a layer go, so that its KV groups stay equal.

    A step removes the weakest query head of every group that is left, or the weakest group. It is
    the one that adds the least error for each parameter. The last group loses its heads one by one.

    Returns:
        The score of each query head: the number of its step, plus half its error relative to the
        largest one of the step.
    """
    queries, removal = coupling.queries, importance.removal(coupling.by_query(), gram, mean)
    block = coupling.prunable
    head = (block.params - block.shared) // queries  # parameters
    left = torch.arange(coupling.atoms * queries, device=gram.device).view(-1, queries)
    scores = torch.empty(left.numel(), device=gram.device)
    step = 0
    while left.numel():
        groups, each = left.shape
        errors = removal.errors(left.flatten()).view(groups, each)
        options = list[tuple[Tensor, Tensor]]()  # error for each parameter, and the heads
        if each > 1:
            weakest = left.gather(1, errors.argmin(1, keepdim=True))[:, 0]
            options.append((removal.joint(weakest) / (groups * head), weakest))
        if groups > 1 or each == 1:
            whole = torch.stack([removal.joint(group) for group in left])
            least = int(whole.argmin())
            options.append((whole[least] / (each * head + block.shared), left[least]))
        _, gone = min(options, key=lambda option: float(option[0]))
        removal.remove(gone)
        out = torch.isin(left, gone)
        share = errors[out] / errors[out].max().clamp_min(_SMALLEST)
        scores[left[out]] = step + share.float() / 2
        stay = int((~out.all(1)).sum())
        left = left[~out].view(stay, -1) if stay else left[:0]
        step += 1
    return scores


_SMALL = 512  # rows of a matrix that LAPACK inverts
_SMALLEST = 1e-30  # smallest divisor
