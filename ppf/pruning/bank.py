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
        folder: Path | None = None,
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
            folder: where the levels of each site are stored; undamaged files are read, not made.
                None: nothing is stored.
            ranks: the processes that build the same bank; only rank 0 writes files.
        """
        indices = lm.coupling_indices(space.sites)
        columns_of = [widths(s, lm.couplings[i]) for s, i in zip(space.sites, indices, strict=True)]
        factored = compensation.refits and ready_gib(lm, space) > max_gib
        if factored:
            assert folder is not None
            say(f"The level bank needs more than {max_gib} GiB: its factors go to {folder}.")

        def prepare(number: int) -> Levels:
            i = indices[number]
            coupling = lm.couplings[i]
            columns = expand(orders[i], coupling.columns).to(lm.device)
            gram, mean = statistics.gram[i].to(lm.device), statistics.mean[i].to(lm.device)
            weight = coupling.consumer.weight[:, columns].float()
            moments = gram[columns][:, columns], mean[columns]
            made = compensation.levels(weight, *moments, columns_of[number], factored=factored)
            return _cast(made, lm)

        levels = []
        names = [site.name for site in space.sites]
        form = f"{type(compensation).__name__}-{'factors' if factored else 'weights'}"
        for number, name in enumerate(
            track(names, f"Preparing the level bank ({len(space)} sites)")
        ):
            make = partial(prepare, number)
            if folder is not None:
                file = folder / form / f"{name}.safetensors"
                make = partial(_stored, file, columns_of[number], make, ranks)
            levels.append(_cast(make(), lm))
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


def _stored(
    file: Path, widths: list[int], make: Callable[[], Levels], ranks: Ranks | None
) -> Levels:
    """Levels in a file, which `make` makes if it is missing; weights are read when used."""

    def write(draft: Path) -> None:
        made = make()
        named = {"errors": made.errors}
        if made.biases is not None:
            named["biases"] = made.biases
        if isinstance(made.weights, Factors):
            named["projected"] = made.weights.projected[:, :]
            named["inverse"] = made.weights.inverse[:, :]
        elif made.weights is not None:
            named |= {f"{_LEVEL}{level:06}": weight for level, weight in enumerate(made.weights)}
        write_tensors(draft, named)

    def read(path: Path) -> Levels:
        stored = open_tensors(path)
        names = sorted(stored.keys())
        weights: Factors | list[Tensor] | None
        weights = [stored.get_tensor(name) for name in names if name.startswith(_LEVEL)] or None
        if "projected" in names:
            projected, inverse = stored.get_slice("projected"), stored.get_slice("inverse")
            weights = Factors(projected, inverse, widths[:-1])
        biases = stored.get_tensor("biases") if "biases" in names else None
        return Levels(stored.get_tensor("errors"), weights, biases)

    return get_or_make(file, read=read, make=write, ranks=ranks)


def _cast(levels: Levels, lm: LanguageModel) -> Levels:
    """The same levels on the model's device and in its dtype."""
    weights = levels.weights
    if isinstance(weights, Factors):
        weights = replace(weights, dtype=lm.dtype, device=lm.device)
    elif weights is not None:
        weights = [weight.to(lm.device, lm.dtype).contiguous() for weight in weights]
    biases = None if levels.biases is None else levels.biases.to(lm.device, lm.dtype)
    return Levels(levels.errors, weights, biases)


_LEVEL = "level."  # prefix of the names of a file's weights
