"""Compares what a config needs with what this machine has, before any work starts."""

import copy
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from omegaconf import DictConfig, OmegaConf

from ppf.errors import PPFError
from ppf.llm.divide import check_division
from ppf.llm.loading import resolve_dtype
from ppf.planning.control_groups import left_by_groups
from ppf.planning.plan import GIB, Need, Sizes, Speeds, needs
from ppf.pruning.signatures import signatures

_ANY_SPEED = Speeds(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Free:
    """GiB that are free on this machine.

    Args:
        memory: on the device of this process.
        host: in the host's memory, within the limits of this process's control groups.
        disk: on the disk of `paths.artefacts`.
        cache: on the disk of `paths.cache`; None: it is the same disk.
    """

    memory: float
    host: float
    disk: float
    cache: float | None = None

    @classmethod
    def on(cls, device: torch.device, artefacts: Path, cache: Path) -> "Free":
        """What is free on a device, and on the disks of two folders."""
        artefacts, cache = _existing(artefacts), _existing(cache)
        host = min(psutil.virtual_memory().available, left_by_groups()) / GIB
        memory = torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else host
        disk, other = (shutil.disk_usage(folder).free / GIB for folder in (artefacts, cache))
        same = artefacts.stat().st_dev == cache.stat().st_dev
        return cls(memory, host, disk, None if same else other)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(above for above in (folder, *folder.absolute().parents) if above.exists())


@dataclass(frozen=True)
class Comparison:
    """What a config needs, and what there is.

    Args:
        sizes: of model, bank and text.
        needs: of each stage.
        free: on this machine.
        made: GiB of files of statistics and bank that exist already.
        dtype: as for `Sizes.of`.
    """

    sizes: Sizes
    needs: list[Need]
    free: Free
    made: float
    dtype: str | None = None

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        device: torch.device,
        processes: int,
        speeds: Speeds = _ANY_SPEED,
        dtype: str | None = None,
    ) -> "Comparison":
        """Compares a config with this machine.

        Args:
            cfg: as for `Sizes.of`, with paths.
            device: of this process.
            processes: number of processes on this machine.
            speeds: of the device.
            dtype: as for `Sizes.of`.

        Raises:
            PPFError: the structure of the model is not known without its weights.
        """
        sizes = Sizes.of(cfg, device, processes, dtype)
        free = Free.on(device, Path(cfg.paths.artefacts), Path(cfg.paths.cache))
        return cls(sizes, needs(sizes, speeds), free, _made(cfg, device, dtype), dtype)

    def of_processes(self, count: int) -> "Comparison":
        """The same with another number of processes on the machine."""
        sizes = replace(self.sizes, processes=count)
        return replace(self, sizes=sizes, needs=needs(sizes, _ANY_SPEED))

    @property
    def disk(self) -> float:
        """GiB that are still to be written on the disk of `paths.artefacts`."""
        artefacts = max(sum(need.disk for need in self.needs) - self.made, 0.0)
        return artefacts + (self.offloaded if self.free.cache is None else 0.0)

    @property
    def offloaded(self) -> float:
        """GiB of weights in `paths.cache`."""
        return sum(need.offloaded for need in self.needs)

    @property
    def cache_too_small(self) -> bool:
        """Whether the weights do not fit on the disk of `paths.cache`, which is another one."""
        return self.free.cache is not None and self.offloaded > self.free.cache

    @property
    def too_large(self) -> Need | None:
        """The largest need that does not fit into memory; None: all fit."""
        free = self.free
        wrong = [n for n in self.needs if n.memory > free.memory or n.host > free.host]
        return max(wrong, key=lambda need: (need.memory, need.host), default=None)

    @property
    def fits(self) -> bool:
        """Whether memory and disks suffice."""
        return self.disk <= self.free.disk and not self.cache_too_small and not self.too_large


def refuse_what_does_not_fit(
    cfg: DictConfig, device: torch.device, processes: int, dtype: str | None = None
) -> None:
    """Compares a config with this machine before any work starts.

    A model whose config is not available before its weights are loaded is not checked.

    Args:
        cfg: of a command, or the part of it that a policy.json has.
        device: of this process.
        processes: number of processes on this machine, none of which has loaded the model.
        dtype: as for `Sizes.of`.

    Raises:
        PPFError: memory or disk do not suffice; the sentence names the override to change.
    """
    try:
        found = Comparison.of(cfg, device, processes, dtype=dtype)
    except PPFError:
        return
    if sentence := refusal(cfg, device, found):
        raise PPFError(sentence)


def refusal(cfg: DictConfig, device: torch.device, found: Comparison) -> str | None:
    """One sentence on what does not fit and which override mends it; None: all fits.

    Args:
        cfg: as for `refuse_what_does_not_fit`.
        device: of this process.
        found: the comparison of this config.
    """
    wide = found.dtype and found.sizes.itemsize == 4  # the search may have needed less
    name, free = f"model={cfg.model.name}{' in float32' if wide else ''}", found.free
    if found.disk > free.disk:
        return (
            f"{name} needs {_size(found.disk)} of disk, but {_size(free.disk)} are free in"
            f" {cfg.paths.artefacts}: give a folder on another disk with paths.artefacts=FOLDER."
        )
    if found.cache_too_small:
        return (
            f"model.offload=disk needs {_size(found.offloaded)} of disk, but {_size(free.cache)}"
            f" are free in {cfg.paths.cache}: give a folder on another disk with"
            " paths.cache=FOLDER."
        )
    if not (worst := found.too_large):
        return None
    wanted, there = f"{_size(worst.host)} of host memory", _size(free.host)
    if device.type == "cpu":
        wanted = f"{_size(worst.host)} of memory"
    if (count := found.sizes.processes) > 1:
        wanted += f" for {count} processes"
    if device.type != "cpu":
        wanted = f"{_size(worst.memory)} of GPU memory and {wanted}"
        there = f"{_size(free.memory)} and {there}"
    remedy = _remedy(cfg, device, count, found.dtype)
    return f"{worst.stage} of {name} needs {wanted}, but {there} are free: {remedy}."


def _size(gib: float | None) -> str:
    gib = gib or 0.0
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"


def _remedy(cfg: DictConfig, device: torch.device, processes: int, dtype: str | None) -> str:
    """The fewest overrides under which everything fits, as a request."""
    options, fewer = _overrides(cfg, device), range(processes - 1, 0, -1)
    nodes = cfg.fabric.num_nodes if "fabric" in cfg else 1
    tried = [([], fewer), *((o, [processes]) for o in options), *((o, fewer) for o in options)]
    for given, counts in tried:
        if not counts:
            continue
        changed = copy.deepcopy(cfg)
        OmegaConf.set_readonly(changed, None)
        OmegaConf.set_struct(changed, False)
        changed.merge_with_dotlist(given)
        found = Comparison.of(changed, device, processes, dtype=changed.get("dtype", dtype))
        for count in counts:
            if found.of_processes(count).fits and _divides(changed, device, count * nodes):
                given += [f"fabric.devices={count}"] * (count < processes)
                return f"give {' '.join(given)}"
    smaller = "give a smaller model, or " if "fabric" in cfg else ""
    return f"{smaller}use a machine with more memory"


def _overrides(cfg: DictConfig, device: torch.device) -> list[list[str]]:
    """Overrides that lower the needs of a process, the mildest first."""
    mild = [["bank.max_gib=0.0"], *([["sequential=false"]] if cfg.get("sequential") else [])]
    if "fabric" not in cfg:  # of a policy.json, which determines model and text
        rounded = [["dtype=bfloat16", *given] for given in ([], *mild)] if "dtype" in cfg else []
        return [*mild, *rounded]
    undivided = ["model.device_map=null"] if cfg.model.get("device_map") else []
    offload = [*undivided, "model.offload=disk"]
    windows = ["text.windows.calibration=8", "text.windows.labelling=2"]
    found = [["model.dtype=bfloat16"], *mild]
    if device.type == "cuda":
        found += [["model.device_map=auto"]] * (torch.cuda.device_count() > 1)
        found.append([*undivided, "model.offload=cpu"])
    found += [offload, *([window] for window in windows)]
    return [*found, ["model.dtype=bfloat16", "bank.max_gib=0.0", *offload, *windows]]


def _divides(cfg: DictConfig, device: torch.device, processes: int) -> bool:
    """Whether a config's `model.device_map` can be used."""
    try:
        check_division(cfg.model, device, processes)
    except PPFError:
        return False
    return True


def _made(cfg: DictConfig, device: torch.device, dtype: str | None) -> float:
    """GiB of files of statistics and bank that exist already."""
    folder = Path(cfg.paths.artefacts)
    if not (folder / "statistics").is_dir():  # signatures may have to read the model's files
        return 0.0
    names, loaded = signatures(cfg, device), resolve_dtype(dtype or cfg.model.dtype, device)
    parts = (f"statistics/{names.statistics}*", f"bank/{names.bank}/{loaded}")
    return sum(_bytes(top) for part in parts for top in folder.glob(part)) / GIB


def _bytes(place: Path) -> int:
    """The size of a file, or of all files in a folder; another process may be removing them."""
    found = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    total = 0
    for file in found if place.is_dir() else [place]:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
