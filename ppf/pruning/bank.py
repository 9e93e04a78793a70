"""The level bank: the compensated consumer of every site, for each number of kept units."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.artefacts import get_or_make
from ppf.llm import Coupling, LanguageModel
from ppf.progress import say, track
from ppf.pruning.compensation import Compensation, Factors, Levels
from ppf.pruning.statistics import Statistics, expand, open_tensors, write_tensors
from ppf.ranks import Ranks
from ppf.space import Site, Space


@dataclass(frozen=True)
class Bank:
    """Compensated consumers of every site, with columns in order of importance.

    Args:
        orders: for each coupling of the model, its atoms from most to least important.
        levels: for each site of the space, its levels; level k keeps k units.
    """

    orders: list[Int[Tensor, " _"]]
    levels: list[Levels]

    @property
    def errors(self) -> Float[Tensor, "sites levels"]:
        """Relative reconstruction error of each site and level; short rows are padded with 0."""
        return torch.nn.utils.rnn.pad_sequence([level.errors.cpu() for level in self.levels], True)

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        lm: LanguageModel,
        space: Space,
        orders: list[Tensor],
        statistics: Statistics,
        compensation: Compensation,
        *,
        max_gib: float = torch.inf,
        folder: Path = Path(),
        ranks: Ranks | None = None,
    ) -> "Bank":
        """Computes all levels of all sites, on the model's device and in its dtype.

        Args:
            lm: the dense model.
            space: the space whose sites get levels.
            orders: as in `Bank`.
            statistics: second moments of the consumers' inputs.
            compensation: computes the levels of one site.
            max_gib: most GiB of memory for the weights of all levels. A larger bank stores two
                factors per site in memory-mapped files, and multiplies them when a policy needs a
                level.
            folder: folder of these files, used by this bank only. Undamaged files are
                reused.
            ranks: the processes that build the same bank; only rank 0 writes files.
        """
        indices = lm.coupling_indices(space.sites)
        columns_of = [widths(s, lm.couplings[i]) for s, i in zip(space.sites, indices, strict=True)]
        factored = compensation.refits and ready_gib(lm, space) > max_gib
        if factored:
            say(f"The level bank needs more than {max_gib} GiB: its factors go to {folder}.")

        def prepare(number: int) -> Levels:
            i = indices[number]
            coupling = lm.couplings[i]
            columns = expand(orders[i], coupling.columns).to(lm.device)
            gram, mean = statistics.gram[i].to(lm.device), statistics.mean[i].to(lm.device)
            weight = coupling.consumer.weight[:, columns].float()
            moments = gram[columns][:, columns], mean[columns]
            return compensation.levels(weight, *moments, columns_of[number], factored=factored)

        levels = []
        names = [site.name for site in space.sites]
        for number, name in enumerate(
            track(names, f"Building the level bank ({len(space)} sites)")
        ):
            make = partial(prepare, number)
            file = folder / f"{name}.safetensors"
            level = _spilled(file, columns_of[number], make, ranks) if factored else make()
            levels.append(_cast(level, lm))
        return cls(orders, levels)


def widths(site: Site, coupling: Coupling) -> list[int]:
    """Number of the consumer's columns at every level, from 0 to all units."""
    return [kept * site.atoms_per_unit * coupling.columns for kept in range(site.units + 1)]


def ready_gib(lm: LanguageModel, space: Space) -> float:
    """GiB that the weights of all levels take, without the dense level."""
    # Level k of n has k / n of the columns, so levels 0 to n - 1 have (n - 1) / 2 of the weight.
    consumers = [lm.couplings[i].consumer.weight for i in lm.coupling_indices(space.sites)]
    pairs = zip(space.sites, consumers, strict=True)
    return sum(weight.nbytes * (site.units - 1) / 2 for site, weight in pairs) / 2**30


def _spilled(
    file: Path, widths: list[int], make: Callable[[], Levels], ranks: Ranks | None
) -> Levels:
    """Levels with factors in a file, which `make` makes if it is missing."""

    def write(draft: Path) -> None:
        made = make()
        assert isinstance(made.weights, Factors)
        projected, inverse = made.weights.projected[:, :], made.weights.inverse[:, :]
        assert made.biases is not None
        small = {"errors": made.errors, "biases": made.biases}
        write_tensors(draft, small | {"projected": projected, "inverse": inverse})

    def read(path: Path) -> Levels:
        stored = open_tensors(path)
        projected, inverse = stored.get_slice("projected"), stored.get_slice("inverse")
        factors = Factors(projected, inverse, widths[:-1])
        return Levels(stored.get_tensor("errors"), factors, stored.get_tensor("biases"))

    return get_or_make(file, read=read, make=write, ranks=ranks)


def _cast(levels: Levels, lm: LanguageModel) -> Levels:
    weights = levels.weights
    if isinstance(weights, Factors):
        weights = replace(weights, dtype=lm.dtype, device=lm.device)
    elif weights is not None:
        weights = [weight.to(lm.dtype).contiguous() for weight in weights]
    biases = None if levels.biases is None else levels.biases.to(lm.dtype)
    return Levels(levels.errors, weights, biases)
