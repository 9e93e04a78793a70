"""The level bank: the compensated consumer of every site, for each number of kept units."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.artefacts import get_or_make
from ppf.llm import Coupling, LanguageModel
from ppf.progress import say, track
from ppf.pruning.compensation import Compensation, Factors, Levels, column_blocks
from ppf.pruning.statistics import Statistics, expand
from ppf.pruning.tensor_files import open_tensors, write_tensors
from ppf.ranks import Ranks, own_first
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
        """Computes all levels of all sites, on their layers' devices and in the model's dtype.

        Factors that stay in memory are read after the last site is solved. Peak memory is therefore
        the model and the larger of two: one site's matrices, or all factors.

        Args:
            orders: as in `Bank`.
            statistics: second moments of the consumers' inputs.
            compensation: computes the levels of one site.
            max_gib: most GiB of memory for the weights of all levels (see `bank_size`).
            folder: where the levels of each site are stored; undamaged files are read, not made.
                None: nothing is stored.
            ranks: the processes that build the same bank. Each starts with different sites, and
                reads the files that others have written.
        """
        indices = lm.coupling_indices(space.sites)
        columns_of = [widths(s, lm.couplings[i]) for s, i in zip(space.sites, indices, strict=True)]
        shapes = [_shape(lm.couplings[i]) for i in indices]
        devices = {lm.device_of(site.layer) for site in space.sites}
        size = bank_size(shapes, space, lm.dtype, max_gib, devices)
        factored = compensation.refits and size.factored
        if factored:
            assert folder is not None
            place = "are kept in memory too" if size.resident else "stay on disk"
            say(
                f"The weights of all levels need more than bank.max_gib={max_gib}:"
                f" {size.gib:.1f} GiB of matrix factors are stored in {folder} and {place}."
            )

        def prepare(number: int) -> Levels:
            i = indices[number]
            coupling = lm.couplings[i]
            device = lm.device_of(coupling.layer)
            columns = expand(orders[i], coupling.columns).to(device)
            gram, mean = statistics.gram[i].to(device), statistics.mean[i].to(device)
            with lm.resident(coupling.layer):
                weight = coupling.consumer.weight[:, columns].float()
            moments = gram[columns][:, columns], mean[columns]
            made = compensation.levels(weight, *moments, columns_of[number], factored=factored)
            if lm.adapter.norm_behind(coupling):  # it would scale a bias to full strength
                made = made.silenced()
            return _cast(made, lm.dtype, device)

        form = f"{type(compensation).__name__}-{'blocks' if factored else 'weights-and-blocks'}"

        def build(number: int) -> Levels:
            make = partial(prepare, number)
            if folder is None:
                return make()
            file = folder / form / f"{space.sites[number].name}.safetensors"
            return _stored(file, columns_of[number], make, _stored_dtype(lm.dtype))

        order = own_first(range(len(space)), ranks if folder else None)
        label = f"Preparing the level bank ({len(space)} sites)"
        made = {number: build(number) for number in track(order, label)}
        levels = [
            _cast(made.pop(number), lm.dtype, lm.device_of(site.layer), resident=size.resident)
            for number, site in enumerate(space.sites)
        ]
        return cls(orders, levels)


def widths(site: Site, coupling: Coupling) -> list[int]:
    """Number of the consumer's columns at every level, from 0 to all units."""
    return [kept * site.atoms_per_unit * coupling.columns for kept in range(site.units + 1)]


class BankSize(NamedTuple):
    """How a least-squares bank is stored, and how large it is.

    Args:
        factored: True: two factors of each site are stored, and a level is computed as their
            product when a policy needs it. False: the weights of all levels are in memory.
        resident: False: the factors are read from their mapped files at each use. True: everything
            that a policy needs is in memory.
        gib: size of the factors, or of the weights of all levels.
        disk: GiB of the bank's files. They contain the factors, and also the weights of all levels
            unless `factored`.
    """

    factored: bool
    resident: bool
    gib: float
    disk: float


def bank_size(
    shapes: Sequence[tuple[int, int]],
    space: Space,
    dtype: torch.dtype,
    max_gib: float,
    devices: Collection[torch.device],
    loading: float = 0.0,
) -> BankSize:
    """The first of these forms that fits: all levels, factors in memory, factors on disk.

    Args:
        shapes: of the consumer's weight of each site.
        max_gib: most GiB of memory that the weights of all levels take. Factors on GPUs may take
            half of the free memory if that is more.
        devices: of the model's layers.
        loading: GiB of weights that these devices will still receive.
    """
    numbers = sum(rows * columns + _in_blocks(columns) for rows, columns in shapes)
    gib = numbers * _stored_dtype(dtype).itemsize / 2**30
    if (ready := levels_gib(shapes, space, dtype)) <= max_gib:
        return BankSize(False, True, ready, ready + gib)
    max_gib = max(max_gib, (_free_gib(devices) - loading) / 2)
    return BankSize(True, gib <= max_gib, gib, gib)


def _in_blocks(columns: int) -> int:
    """Numbers in the blocks of a triangular matrix."""
    return sum((columns - i.start) * (i.stop - i.start) for i in column_blocks(columns))


def _free_gib(devices: Collection[torch.device]) -> float:
    """GiB of GPUs that are free, or that PyTorch keeps without using them."""
    gpus = [device for device in devices if device.type == "cuda"]
    kept = [torch.cuda.memory_reserved(d) - torch.cuda.memory_allocated(d) for d in gpus]
    return (sum(kept) + sum(torch.cuda.mem_get_info(d)[0] for d in gpus)) / 2**30


def levels_gib(shapes: Sequence[tuple[int, int]], space: Space, dtype: torch.dtype) -> float:
    """GiB that the weights of all levels take, without the dense level."""
    # Level k of n has k / n of the columns, so levels 0 to n - 1 have (n - 1) / 2 of the weight.
    pairs = zip(space.sites, shapes, strict=True)
    numbers = sum(rows * columns * (site.units - 1) / 2 for site, (rows, columns) in pairs)
    return numbers * dtype.itemsize / 2**30


def ready_gib(lm: LanguageModel, space: Space) -> float:
    """`levels_gib` of a loaded model."""
    shapes = [_shape(lm.couplings[i]) for i in lm.coupling_indices(space.sites)]
    return levels_gib(shapes, space, lm.dtype)


def _shape(coupling: Coupling) -> tuple[int, int]:
    return coupling.consumer.out_features, coupling.consumer.in_features


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of stored factors: bfloat16 for a bfloat16 model; float16 could overflow."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def _stored(
    file: Path, widths: list[int], make: Callable[[], Levels], dtype: torch.dtype
) -> Levels:
    """Levels in a file, which `make` makes if it is missing; weights are read when used.

    Args:
        dtype: of factors in the file.
    """

    def write(draft: Path) -> None:
        made = make()
        named = {"errors": made.errors}
        if made.biases is not None:
            named["biases"] = made.biases
        if made.factors:
            named["projected"] = made.factors.projected[:].to(dtype)
            for number, block in enumerate(made.factors.inverse):
                named[f"{_BLOCK}{number:06}"] = block[:].to(dtype)
        if made.weights is not None and not isinstance(made.weights, Factors):
            named |= {f"{_LEVEL}{level:06}": weight for level, weight in enumerate(made.weights)}
        write_tensors(draft, named)

    def read(path: Path) -> Levels:
        stored = open_tensors(path)
        names = sorted(stored.keys())
        factors = None
        if "projected" in names:
            blocks = [stored.get_slice(name) for name in names if name.startswith(_BLOCK)]
            factors = Factors(stored.get_slice("projected"), blocks, widths[:-1])
        ready = [stored.get_tensor(name) for name in names if name.startswith(_LEVEL)]
        biases = stored.get_tensor("biases") if "biases" in names else None
        return Levels(stored.get_tensor("errors"), ready or factors, biases, factors)

    return get_or_make(file, read=read, make=write)


def _cast(
    levels: Levels, dtype: torch.dtype, device: torch.device, *, resident: bool = False
) -> Levels:
    """Levels in the model's dtype on a layer's device; factors are there only if `resident`."""
    weights, factors = levels.weights, levels.factors
    if isinstance(weights, Factors):
        if resident:
            weights = weights.on(device)
        weights = factors = replace(weights, dtype=dtype, device=device)
    elif weights is not None:
        weights = [weight.to(device, dtype).contiguous() for weight in weights]
    biases = None if levels.biases is None else levels.biases.to(device, dtype)
    return Levels(levels.errors, weights, biases, factors)


_LEVEL, _BLOCK = "level.", "inverse."  # prefixes of the names of a file's weights and blocks
