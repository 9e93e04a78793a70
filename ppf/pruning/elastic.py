"""One set of low-rank adapters for a model at every pruning ratio."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.pruning.live import LivePruner

ADAPTERS = "adapters.safetensors"
TRAINING = "adapters.json"  # how they were trained, beside them
T = TypeVar("T")


class Unseen(Generic[T]):
    """Holds an object that modules must not find: checkpoints, DDP and copies leave it out."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unseen[T]":
        return self


class Adapters(nn.Module):
    """Low-rank changes of all pruned projections; a policy uses their first rows and columns.

    An adapter has the dense projection's shape. With W′ the live-pruned and compensated weight, the
    output is y = W′ x + scale · up[rows] down[:, columns] x. Under the dense policy the adapters
    are off, so the output is exactly that of the dense model.

    Args:
        pruner: of the model; the adapters stay attached to it.
        rank: of each adapter.
        scale: factor of the adapters' output.
    """

    def __init__(self, pruner: LivePruner, rank: int, scale: float) -> None:
        super().__init__()
        self._pruner = Unseen(pruner)  # the model is no submodule
        self.scale = scale
        with pruner.at(pruner.space.dense.tolist()):
            linears = projections(pruner)
            self.pairs = {name: _Pair(linear, rank) for name, linear in linears.items()}
        self.trained = nn.ModuleList(self.pairs.values())
        for linear, pair in zip(linears.values(), self.pairs.values(), strict=True):
            linear.register_forward_hook(partial(self._add, pair))

    @property
    def active(self) -> bool:
        """Whether the present policy is pruned."""
        pruner = self._pruner.value
        return pruner.kept != pruner.space.dense.tolist()

    def _add(self, pair: "_Pair", linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Any:
        if not self.active:
            return None
        down, up = pair.factors(self._pruner.value, linear)
        added = F.linear(F.linear(inputs[0], down.to(output)), up.to(output))
        return output + self.scale * added

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Adds the adapters to the weights of the present policy, for an export, within a block."""
        if not self.active:
            yield
            return
        pruner, scale = self._pruner.value, self.scale
        with torch.no_grad():
            for linear, pair in zip(projections(pruner).values(), self.pairs.values(), strict=True):
                down, up = pair.factors(pruner, linear)
                change = scale * (up @ down).to(linear.weight.device)
                linear.weight = nn.Parameter((linear.weight + change).to(linear.weight), False)
        self.scale = 0.0
        try:
            yield
        finally:
            self.scale = scale
            pruner.reset()

    def save(self, folder: Path, origin: dict[str, str]) -> Path:
        """Writes the file of the adapters.

        Args:
            origin: what the adapters were trained on; `load` compares it.
        """
        tensors = {}
        for name, pair in self.pairs.items():
            tensors[f"{name}.up"] = (self.scale * pair.up).detach().cpu().contiguous()
            tensors[f"{name}.down"] = pair.down.detach().cpu().contiguous()
        save_file(tensors, folder / ADAPTERS, metadata=origin)
        return folder / ADAPTERS

    @classmethod
    def load(cls, folder: Path, pruner: LivePruner, origin: dict[str, str]) -> "Adapters":
        """Reads the adapters of a folder and attaches them.

        Raises:
            PPFError: the file is damaged, or was trained for another model or compensation.
        """
        file, metadata, tensors = folder / ADAPTERS, *_read(folder / ADAPTERS)
        for key, value in origin.items():
            if metadata.get(key) != value:
                raise PPFError(
                    f"{file} was trained with another {key} ({metadata.get(key)}, not {value}):"
                    f" {_REMEDY}, and the bank.max_gib that its training used."
                )
        rank = next((len(t) for name, t in tensors.items() if name.endswith(".down") and t.ndim), 1)
        with pruner.at(pruner.space.dense.tolist()):
            sizes = {name: linear.weight.shape for name, linear in projections(pruner).items()}
        expected = {f"{name}.up": (rows, rank) for name, (rows, _) in sizes.items()}
        expected |= {f"{name}.down": (rank, columns) for name, (_, columns) in sizes.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        finite = all(x.dtype in _DTYPES and x.isfinite().all() for x in tensors.values())
        if shapes != expected or not finite:  # before memory is taken for that rank
            raise PPFError(f"{file} does not fit the model: {_REMEDY}.")
        adapters = cls(pruner, rank, 1.0)
        for name, pair in adapters.pairs.items():
            pair.up.data.copy_(tensors[f"{name}.up"])
            pair.down.data.copy_(tensors[f"{name}.down"])
        return adapters.requires_grad_(False)


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of adapters."""
    try:
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            return stored.metadata() or {}, tensors
    except (OSError, SafetensorError) as error:
        raise PPFError(f"{file} cannot be read: {_REMEDY}.") from error


class _Pair(nn.Module):
    """The two factors of one adapter; at first their product is zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.to(linear.weight)

    def factors(
        self, pruner: LivePruner, linear: Any
    ) -> tuple[Float[Tensor, "rank columns"], Float[Tensor, "rows rank"]]:
        """The columns and rows that the projection has under the present policy."""
        return pruner.part(linear, self.down, 1), pruner.part(linear, self.up, 0)


def projections(pruner: LivePruner) -> dict[str, nn.Linear]:
    """The projections of the space's sites, by site and number."""
    found = dict[str, nn.Linear]()
    for index, site in zip(
        pruner.lm.coupling_indices(pruner.space.sites), pruner.space.sites, strict=True
    ):
        linears = pruner.lm.couplings[index].linears
        found |= {f"{site.name}.{number}": linear for number, linear in enumerate(linears)}
    return found


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REMEDY = "give the folder of a recovery with search=FOLDER"
