"""The level bank: for every site and kept count, the ready consumer and its error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm import LanguageModel
from ppf.progress import track
from ppf.pruning.compensation import Compensation, Levels
from ppf.pruning.statistics import Statistics
from ppf.space import Space


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
    ) -> "Bank":
        """Prepares every site of `space`, on the model's device and in its dtype."""
        index = {(c.layer, c.kind): i for i, c in enumerate(lm.couplings)}
        levels = []
        for site in track(space.sites, f"Building the level bank ({len(space)} sites)"):
            i = index[site.layer, site.kind]
            coupling = lm.couplings[i]
            columns = expand(orders[i], coupling.columns).to(lm.device)
            gram, mean = statistics.gram[i].to(lm.device), statistics.mean[i].to(lm.device)
            weight = coupling.consumer.weight[:, columns]
            widths = [k * site.atoms_per_unit * coupling.columns for k in range(site.units + 1)]
            level = compensation.levels(
                weight.float(), gram[columns][:, columns], mean[columns], widths
            )
            levels.append(_cast(level, lm.dtype))
        return cls(orders, levels)


def expand(atoms: Int[Tensor, " atoms"], size: int) -> Int[Tensor, " rows"]:
    """Atom numbers to the rows (or columns) that they stand for, `size` consecutive ones each."""
    return (atoms[:, None] * size + torch.arange(size)).flatten()


def _cast(levels: Levels, dtype: torch.dtype) -> Levels:
    weights = None if levels.weights is None else [w.to(dtype).contiguous() for w in levels.weights]
    return Levels(
        levels.errors, weights, None if levels.biases is None else levels.biases.to(dtype)
    )
