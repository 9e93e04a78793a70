"""The level bank: the compensated consumer of every site, for each number of kept units."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.artefacts import get_or_make
from ppf.llm import Coupling, LanguageModel
from ppf.progress import track
from ppf.pruning.compensation import Compensation, Factors, Levels, column_blocks
from ppf.pruning.order import Order
from ppf.pruning.statistics import Statistics
from ppf.pruning.tensor_files import open_tensors, write_tensors
from ppf.ranks import Ranks, own_first
from ppf.space import Site, Space


class Bank:
    """Compensated consumers of every site, with columns in order of importance.

    The weight of a level is computed from its site's factors when it is first used.

    Args:
        orders: of the atoms of each coupling of the model.
        levels: for each site of the space, its levels; level k keeps k units.
        max_gib: GiB of computed weights that stay in memory; the least recently used ones go first.
    """

    def __init__(
        self, orders: list[Order], levels: list[Levels], max_gib: float = torch.inf
    ) -> None:
        self.orders, self.levels, self._most = orders, levels, max_gib * 2**30
        self._computed, self._bytes = OrderedDict[tuple[int, int], Tensor](), 0

    def weight(
        self, site: int, level: int, dense: Float[Tensor, "hidden columns"], order: Order
    ) -> Float[Tensor, "hidden width"] | None:
        """The weight of a site's level; None: the columns of the dense weight.

        Args:
            dense: the dense weight, in this order of its coupling.
        """
        factors = self.levels[site].factors
        if factors is None or level == len(factors.widths):
            return None
        key = site, level
        if key not in self._computed:
            weight = factors.weight(level, order.nest(dense))
            self._computed[key] = order.unnest(weight, dense.shape[1])
            self._bytes += self._computed[key].nbytes
        self._computed.move_to_end(key)
        weight = self._computed[key]
        while self._bytes > self._most:
            self._bytes -= self._computed.popitem(last=False)[1].nbytes
        return weight

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
        orders: list[Order],
        statistics: Statistics,
        compensation: Compensation,
        *,
        max_gib: float = torch.inf,
        folder: Path | None = None,
        ranks: Ranks | None = None,
    ) -> "Bank":
        """Computes the factors of all sites, on their layers' devices.

        Factors that stay in memory are read after the last site is solved. Peak memory is therefore
        the model and the larger of two: one site's matrices, or all factors.

        Args:
            orders: as in `Bank`.
            statistics: second moments of the consumers' inputs.
            compensation: computes the levels of one site.
            max_gib: as in `Bank`.
            folder: where the levels of each site are stored; undamaged files are read, not made.
                None: nothing is stored.
            ranks: the processes that build the same bank. Each starts with different sites, and
                reads the files that others have written.
        """
        indices = lm.coupling_indices(space.sites)
        columns_of = [widths(s, lm.couplings[i]) for s, i in zip(space.sites, indices, strict=True)]
        consumers = [lm.couplings[i].consumer for i in indices]
        shapes = [(x.out_features, x.in_features) for x in consumers]
        devices = {lm.device_of(site.layer) for site in space.sites}
        # On GPUs, if they take at most half of what is free there; a CPU reads them from files.
        resident = factors_gib(shapes, lm.dtype) <= _free_gib(devices) / 2

        def prepare(number: int) -> Levels:
            i = indices[number]
            coupling = lm.couplings[i]
            device = lm.device_of(coupling.layer)
            columns = orders[i].columns(coupling.columns).to(device)
            gram, mean = statistics.gram[i].to(device), statistics.mean[i].to(device)
            with lm.resident(coupling.layer):
                weight = coupling.consumer.weight[:, columns].float()
            if gram.dim() == 3:
                gram = gram[orders[i].atoms.to(device)]
            else:
                gram = gram[columns][:, columns]
            made = compensation.levels(weight, gram, mean[columns], columns_of[number])
            if lm.adapter.norm_behind(coupling):  # it would scale a bias to full strength
                made = made.silenced()
            return made

        def build(number: int) -> Levels:
            make = partial(prepare, number)
            if folder is None:
                return make()
            name = f"{type(compensation).__name__}-blocks"
            file = folder / name / f"{space.sites[number].name}.safetensors"
            return _stored(file, columns_of[number], make, _stored_dtype(lm.dtype))

        order = own_first(range(len(space)), ranks if folder else None)
        label = f"Preparing the level bank ({len(space)} sites)"
        made = {number: build(number) for number in track(order, label)}
        levels = [
            _placed(made.pop(number), lm.dtype, lm.device_of(site.layer), resident=resident)
            for number, site in enumerate(space.sites)
        ]
        return cls(orders, levels, max_gib)


def widths(site: Site, coupling: Coupling) -> list[int]:
    """Number of the consumer's columns at every level, from 0 to all units."""
    if site.heads:
        size = coupling.columns // coupling.queries
        return [groups * queries * size for groups, queries in site.heads]
    return [kept * site.atoms_per_unit * coupling.columns for kept in range(site.units + 1)]


def factors_gib(shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> float:
    """GiB of the factors of all sites, which a least-squares bank stores.

    Args:
        shapes: of the consumer's weight of each site.
        dtype: of the model.
    """
    numbers = sum(rows * columns + _in_blocks(columns) for rows, columns in shapes)
    return numbers * _stored_dtype(dtype).itemsize / 2**30


def solving_gib(rows: int, columns: int, blocks: int = 1, width: int = 0) -> float:
    """GiB of the matrices, most of them in float64, that refit a weight of this shape.

    Args:
        rows, columns: of the weight.
        blocks, width: as `blocks_of` returns them. With several blocks, no weight changes.
    """
    if blocks > 1:
        return 8 * (blocks * width**2 + 2 * rows * columns) / 2**30
    return 8 * (5 * columns**2 + 4 * rows * columns) / 2**30


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
        write_tensors(draft, named)

    def read(path: Path) -> Levels:
        stored = open_tensors(path)
        names = sorted(stored.keys())
        factors = None
        if "projected" in names:
            blocks = [stored.get_slice(name) for name in names if name.startswith(_BLOCK)]
            factors = Factors(stored.get_slice("projected"), blocks, widths[:-1])
        biases = stored.get_tensor("biases") if "biases" in names else None
        return Levels(stored.get_tensor("errors"), factors, biases)

    return get_or_make(file, read=read, make=write)


def _placed(levels: Levels, dtype: torch.dtype, device: torch.device, *, resident: bool) -> Levels:
    """Levels whose biases are in the model's dtype, and on a layer's device.

    Args:
        resident: whether the factors are in this device's memory.
    """
    factors = levels.factors
    if factors:
        factors = replace(factors.on(device) if resident else factors, device=device)
    biases = None if levels.biases is None else levels.biases.to(device, dtype)
    return Levels(levels.errors, factors, biases)


_BLOCK = "inverse."  # prefix of the names of a file's blocks
