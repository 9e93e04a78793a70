"""Memory, disk and time that a command needs on this machine, from the model's config alone."""

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.llm.backward import SMALL, activations
from ppf.llm.loading import dtype_name, place_of_layers, resolve_dtype
from ppf.llm.shapes import skeleton
from ppf.predictor.base import needs_labels, unfitted
from ppf.processes import processes_here
from ppf.progress import say
from ppf.pruning.bank import factors_fit, factors_gib, levels_gib
from ppf.pruning.signatures import signatures
from ppf.ranks import on_rank_0
from ppf.report.scores import duration
from ppf.report.tables import Table, print_table

GIB = 2**30
_AGAIN = 1.25  # every fourth calibration window is run twice
_ALL = 1024  # windows that are assumed where a text gives all it has
_DRAWN = 128  # policies that are labelled for a predictor that needs labels
_EFFICIENCY = 0.5  # of a model's layers, relative to the speed of one large product
_LEVEL = 0.21  # cost of a level from its factors, relative to a product with all columns
_PROCESS = 0.7  # GiB that Python, PyTorch and transformers take


class Need(NamedTuple):
    """The needs of one stage.

    Args:
        memory: GiB at its peak, of one process's GPU, or of the host for all processes on it.
        disk: GiB that it writes.
        seconds: its duration if one process does all of it.
    """

    stage: str
    memory: float
    disk: float
    seconds: float


class Plan:
    """What a config needs.

    Args:
        cfg: with model, text, space, compensation, labels and bank; of a search also its sections.
        device: of one process.
        processes: on this machine.
        dtype: in which the weights are loaded again, after `model.dtype`; None: they are not.

    Attributes:
        parameters: of the model.
        weights: GiB of all of them.
        labels: largest number of policies that are measured.

    Raises:
        PPFError: the structure of the model is not known without its weights.
    """

    def __init__(
        self, cfg: DictConfig, device: torch.device, processes: int = 1, dtype: str | None = None
    ) -> None:
        self.cfg, self.device, self.processes = cfg, device, processes
        model, adapter = skeleton(cfg.model)
        dtypes = [resolve_dtype(name, device) for name in (cfg.model.dtype, dtype) if name]
        self._dtype = max(dtypes, key=lambda each: each.itemsize)
        self._layers, couplings = adapter.layers(model), adapter.couplings(model)
        self._hidden = model.config.hidden_size
        shapes = {c.name: (c.consumer.out_features, c.consumer.in_features) for c in couplings}
        self._consumers = list(shapes.values())
        self.parameters, self._in_layers = parameters(model), parameters(self._layers)
        self._head = model.get_output_embeddings().weight.numel()
        self._offload = place_of_layers(cfg.model, device)
        divided = cfg.model.get("device_map") and device.type == "cuda"
        gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        devices = gpus if divided else [device]
        self._devices = len(devices)
        shared = len(self._layers) if self._offload else self._devices
        self.weights = self._gib(self.parameters)
        self._resident = self._gib(self.parameters - self._in_layers * (1 - 1 / shared))
        self.labels = drawn_labels(cfg) + cfg.get("test_policies", 0)
        if isinstance(cfg.get("search"), DictConfig):  # elsewhere it names a folder
            rules, reported = len(set(cfg.rules) - {"uniform"}), len(cfg.get("ratios", []))
            self.labels += instantiate(cfg.search).evaluations(rules, reported)
        self._bank = self._held = self._computed = 0.0  # GiB: files; what is in memory
        if instantiate(cfg.compensation).refits:
            space = instantiate(cfg.space, [c.prunable for c in couplings])
            given = [shapes[site.name] for site in space.sites]
            self._bank = factors_gib(given, dtypes[-1])
            if factors_fit(self._bank, devices, self._resident * self._devices):
                self._held = self._bank / self._devices
            computed = min(cfg.bank.max_gib, levels_gib(given, space, dtypes[-1]))
            self._computed = computed / self._devices

    def needs(self, speed: float = 1.0, double: float = 1.0) -> list[Need]:
        """The needs of the stages that grow with the model, which are those up to the labels.

        Args:
            speed: floating-point operations a second of a large product in the model's dtype.
            double: the same in float64.
        """
        cfg, shapes, layers = self.cfg, self._consumers, len(self._layers)
        calibration, labelling = (
            int(cfg.text.windows[part] or _ALL) * int(cfg.text.window)
            for part in ("calibration", "labelling")
        )
        state = self._gib(self._hidden)  # of a token in front of one layer
        forward = 2 * self._in_layers / (speed * _EFFICIENCY)  # seconds of a token in all layers
        head = 2 * self._head / (speed * _EFFICIENCY)

        # Moments, order (as `importance=obs` finds it) and features of the sites.
        squares = sum(n**2 for _, n in shapes)
        solved = sum(2 * n**3 + rows * n**2 for rows, n in shapes) + 2 * calibration * squares
        memory = 2 * _AGAIN * calibration * state + solving(shapes)
        seconds = _AGAIN * calibration * forward + solved / double
        found = [self._need("observing the dense model", memory, 4 * squares / GIB, seconds)]

        if self._bank:
            products = sum(n**3 / 3 + 3 / 2 * rows * n**2 for rows, n in shapes)  # float32: half
            memory = solving(shapes) + self._held
            found.append(self._need("building the bank", memory, self._bank, products / double))

        # Expected losses, and gradients at the best policies; a large model runs each layer again.
        predictor = unfitted(cfg.predictor) if cfg.get("predictor") else None
        windows = getattr(predictor, "windows", 0) if cfg.get("mode") != "dynamic" else 0
        sets, dense = 1 + self.labels // getattr(predictor, "renewal", 1), calibration // 4
        kept = activations(self._layers, cfg.text.window, self._dtype) / GIB
        of_bank = self._held + self._computed
        batch = min(SMALL / GIB // kept, calibration // cfg.text.window) * kept
        memory = of_bank + (kept / layers if self._offload or not batch else batch)
        seconds = (dense + sets * windows * cfg.text.window) * (4 * forward + 2 * head)
        states = (layers + 1) * dense * state  # in the memory of the host
        found.append(self._need("gradients", memory, 0, seconds, states))

        each, copied = labelling * (forward + head), 0.0  # GiB of weights that a policy computes
        if self._bank:
            each += 2 * _LEVEL * sum(rows * n**2 for rows, n in shapes) / speed
            copied = self._gib(sum(rows * n for rows, n in shapes))
        elif "budget" in cfg and cfg.budget.name == "bytes":
            copied = self._gib(self._in_layers)
        if self._offload and self.device.type == "cuda":
            copied = 0.0  # to the memory of the host
        of_bank = self._held + max(self._computed, copied / self._devices)
        memory = of_bank + (layers + 1) * labelling * state
        found.append(self._need(f"{self.labels} labels", memory, 0, self.labels * each))
        return found

    def _gib(self, numbers: float) -> float:
        """GiB of numbers in the widest dtype in which the weights are loaded."""
        return numbers * self._dtype.itemsize / GIB

    def _need(
        self, stage: str, memory: float, disk: float, seconds: float, on_host: float = 0.0
    ) -> Need:
        """The need of a stage; `memory` is that of a process besides the weights, in GiB."""
        memory += self._resident
        if self.device.type == "cpu":
            memory = self.processes * (memory + _PROCESS) + on_host
        return Need(stage, memory, disk, seconds)


def solving(shapes: Sequence[tuple[int, int]]) -> float:
    """GiB of the matrices, most of them in float64, for the solution of the widest of matrices."""
    return max(8 * (5 * n**2 + 4 * rows * n) for rows, n in shapes) / GIB


def drawn_labels(cfg: DictConfig) -> int:
    """Policies that are drawn and labelled before a search, the dense one included."""
    if cfg.labels.count is not None:
        return int(cfg.labels.count)
    predictor = cfg.get("predictor")
    return _DRAWN if predictor and needs_labels(unfitted(predictor)) else 1


def check_capacity(cfg: DictConfig, fabric: Fabric, dtype: str | None = None) -> None:
    """Compares a config with this machine before any work starts, on rank 0 for all.

    A model whose config is not available before its weights are loaded is not checked.

    Args:
        cfg, dtype: as for `Plan`.

    Raises:
        PPFError: memory or disk do not suffice.
    """

    def compare() -> None:
        try:
            plan = Plan(cfg, fabric.device, processes_here(fabric), dtype)
        except PPFError:
            return
        if fault := _fault(plan.needs(), _free(cfg, fabric.device)):
            raise PPFError(f"model={cfg.model.name}: {fault}")

    on_rank_0(fabric, compare)


def show(cfg: DictConfig) -> None:
    """Prints memory, disk and time of each stage, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    device, processes = fabric.device, processes_here(fabric)
    dtype = resolve_dtype(cfg.model.dtype, device)
    plan, free = Plan(cfg, device, processes), _free(cfg, device)
    needs = plan.needs(_speed(dtype, device), _speed(torch.float64, device))
    say(
        f"Plan for model={cfg.model.name}: {plan.parameters / 1e9:.2f} billion parameters,"
        f" {plan.weights:.1f} GiB in {dtype_name(dtype)} on the {device.type}. Memory and disk are"
        f" those of {processes} process{'es' * (processes > 1)} on this machine, times those of one"
        " process that does all of the work. Agents, predictors and measurements on other parts of"
        " the text are not counted."
    )
    _, memory, disk, seconds = zip(*needs, strict=True)
    rows = [*needs, ("whole run", max(memory), sum(disk), sum(seconds)), ("free here", *free, None)]
    names = ("stage", "memory, GiB", "disk, GiB", "time")
    shown = [dict(zip(names, row, strict=True)) for row in rows]
    print_table(Table(shown, dict.fromkeys(names[1:3], "{:.1f}".format) | {"time": duration}))
    say(_fault(needs, free) or "It fits.")


def _fault(needs: Sequence[Need], free: tuple[float, float]) -> str | None:
    """What does not fit, and which overrides help; None: the machine suffices.

    Args:
        free: see `_free`.
    """
    wanted = max(need.memory for need in needs), sum(need.disk for need in needs)
    if all(need <= there for need, there in zip(wanted, free, strict=True)):
        return None
    return (
        "It does not fit: it needs {:.1f} GiB of memory and {:.1f} GiB of disk, but {:.1f} and"
        " {:.1f} GiB are free: give model.dtype=bfloat16, bank.max_gib=0.0, fewer text.windows,"
        " model.offload=disk, or another disk's folder with paths.artefacts=FOLDER."
    ).format(*wanted, *free)


def _free(cfg: DictConfig, device: torch.device) -> tuple[float, float]:
    """GiB that are free: of the device's memory, and on the disk of the artefacts.

    What statistics and bank of this config take already counts as free.
    """
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
    else:
        memory = min(psutil.virtual_memory().available, left_by_groups())
    artefacts = Path(cfg.paths.artefacts)
    there = next(x for x in (artefacts, *artefacts.absolute().parents) if x.exists())
    disk = shutil.disk_usage(there).free
    if (artefacts / "statistics").is_dir():  # signatures may have to read the model's files
        names = signatures(cfg, device)
        made = [*artefacts.glob(f"statistics/{names.statistics}*/*")]
        made += artefacts.glob(f"bank/{names.bank}/*/*")
        disk += sum(file.stat().st_size for file in made)
    return memory / GIB, disk / GIB


def left_by_groups(
    membership: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that this process's Linux control group, as of a container or Slurm job, may take.

    The groups above it may have lower limits. Page cache that was not used lately counts as free.

    Args:
        membership: the file that names the group.
        top: folder of all groups.
    """
    left = [math.inf]
    with suppress(OSError):
        name = membership.read_text(encoding="utf-8").rpartition("::/")[2].strip()
        for group in (top / name, *(top / name).parents):
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limit, used, stat = (
                    (group / f"memory.{key}").read_text(encoding="utf-8")
                    for key in ("max", "current", "stat")
                )
                cache = dict(line.split() for line in stat.splitlines())["inactive_file"]
                left.append(int(limit) - int(used) + int(cache))
    return max(min(left), 0)


def _speed(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large product; takes less than a second."""
    side = 1024 if device.type == "cpu" else 8192
    matrix, seconds = torch.ones(side, side, dtype=dtype, device=device), []
    for _ in range(3):
        start = time.perf_counter()
        _ = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)
