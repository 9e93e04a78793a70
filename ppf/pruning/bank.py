"""The level bank: for every site and kept count, the ready consumer and its error."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from ppf.artefacts import get_or_make
from ppf.llm import Coupling, LanguageModel
from ppf.progress import say, track
from ppf.pruning.compensation import Compensation, Factors, Levels
from ppf.pruning.statistics import Statistics, expand, write_tensors
from ppf.ranks import Ranks
from ppf.space import Site, Space


@dataclass(frozen=True)
class Bank:
    """Ready consumers of every site, columns in order of importance.

    Args:
        orders: per coupling of the model, its atoms from most to least important.
        levels: per site of the space; entry k keeps k units.
    """

    orders: list[Int[Tensor, " _"]]
    levels: list[Levels]

    @property
    def errors(self) -> Float[Tensor, "sites levels"]:
        """Relative reconstruction errors, [site, kept]; rows of narrow sites end in zeros."""
        return torch.nn.utils.rnn.pad_sequence([level.errors.cpu() for level in self.levels], True)

    @classmethod
    @torch.inference_mode()
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
        """Prepares every site of `space`, on the model's device and in its dtype.

        Args:
            max_gib: memory for ready weights. A bank that would take more keeps two factors a site
                in memory-mapped files instead, and multiplies a level's weight out when a policy
                asks for it.
            folder: of these files, for this bank alone; files that it already has are used again.
            ranks: processes that build the same bank; only rank 0 writes the files.
        """
        places = lm.coupling_indices(space.sites)
        columns_of = [widths(s, lm.couplings[i]) for s, i in zip(space.sites, places, strict=True)]
        factored = compensation.refits and ready_gib(lm, space) > max_gib
        if factored:
            say(f"Ready levels would take more than {max_gib} GiB: factors go to {folder}.")

        def prepare(number: int) -> Levels:
            i = places[number]
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
    """The consumer's columns at every level."""
    return [kept * site.atoms_per_unit * coupling.columns for kept in range(site.units + 1)]


def ready_gib(lm: LanguageModel, space: Space) -> float:
    """Memory for the ready weights of all levels: a consumer of its own for each but the dense."""
    consumers = [lm.couplings[i].consumer.weight for i in lm.coupling_indices(space.sites)]
    pairs = zip(space.sites, consumers, strict=True)
    return sum(weight.nbytes * (site.units - 1) / 2 for site, weight in pairs) / 2**30


def _spilled(
    file: Path, widths: list[int], make: Callable[[], Levels], ranks: Ranks | None
) -> Levels:
    """Levels whose factors lie in a file, which is made if it is missing."""

    def write(draft: Path) -> None:
        made = make()
        assert isinstance(made.weights, Factors)
        projected, inverse = made.weights.projected[:, :], made.weights.inverse[:, :]
        write_tensors(draft, {"errors": made.errors, "projected": projected, "inverse": inverse})

    def read(path: Path) -> Levels:
        stored = safe_open(path, "pt")
        projected, inverse = stored.get_slice("projected"), stored.get_slice("inverse")
        return Levels(stored.get_tensor("errors"), Factors(projected, inverse, widths[:-1]))

    return get_or_make(file, read=read, make=write, ranks=ranks)


def _cast(levels: Levels, lm: LanguageModel) -> Levels:
    weights = levels.weights
    if isinstance(weights, Factors):
        weights = replace(weights, dtype=lm.dtype, device=lm.device)
    elif weights is not None:
        weights = [weight.to(lm.dtype).contiguous() for weight in weights]
    biases = None if levels.biases is None else levels.biases.to(lm.dtype)
    return Levels(levels.errors, weights, biases)
