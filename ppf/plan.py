"""Memory, disk and time that a command needs on this machine, from the model's config alone."""

import math
import shutil
import time
from functools import cached_property
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
from ppf.pruning.bank import BankSize, bank_size
from ppf.pruning.costs import Bytes
from ppf.pruning.observed import reads_spectra
from ppf.pruning.signatures import signatures
from ppf.ranks import on_rank_0
from ppf.report.scores import duration
from ppf.report.tables import Cell, Table, print_table

GIB = 2**30
_ALL = 1024  # windows that are assumed where a text gives all it has
_DRAWN = 128  # policies that are labelled for a predictor that needs labels
_EFFICIENCY = 0.5  # of a model's layers, relative to the speed of one large product
_LEVEL = 0.28  # cost of a level from its factors, relative to a product with all columns
_PROCESS = 0.7  # GiB that Python, PyTorch and transformers take


class Need(NamedTuple):
    """The needs of one stage on a machine.

    Args:
        memory: GiB at its peak on the device of one process.
        host: GiB of the host's memory at its peak, for all processes.
        disk: GiB that it writes.
        seconds: its duration if one process does all of it.
    """

    stage: str
    memory: float
    host: float
    disk: float
    seconds: float


class Speeds(NamedTuple):
    """Floating-point operations a second of a large matrix product, in three number formats."""

    model: float = 1.0
    single: float = 1.0
    double: float = 1.0


class Plan:
    """What a config needs.

    Args:
        cfg: with model, text, space, compensation, labels and bank; of a search also its sections.
        device: of one process.
        processes: on this machine.
        dtype: in which the weights are loaded again, after `model.dtype`; None: they are not.

    Attributes:
        labels: largest number of policies that are measured.

    Raises:
        PPFError: the structure of the model is not known without its weights.
    """

    def __init__(
        self, cfg: DictConfig, device: torch.device, processes: int = 1, dtype: str | None = None
    ) -> None:
        self.cfg, self.device, self.processes = cfg, device, processes
        model, self._adapter = skeleton(cfg.model)
        dtypes = [resolve_dtype(name, device) for name in (cfg.model.dtype, dtype) if name]
        self._widest, self._last = max(dtypes, key=lambda each: each.itemsize), dtypes[-1]
        self._layers, self._hidden = self._adapter.layers(model), model.config.hidden_size
        self._couplings = self._adapter.couplings(model)
        self.parameters, self._in_layers = parameters(model), parameters(self._layers)
        self._head = model.get_output_embeddings().weight.numel()
        self._offload = place_of_layers(cfg.model, device)
        self._parts = len(self._layers) if self._offload else self._devices
        self.labels = self._evaluations()

    @property
    def _devices(self) -> int:
        divided = self.cfg.model.get("device_map") and self.device.type == "cuda"
        return torch.cuda.device_count() if divided else 1

    @property
    def _consumers(self) -> list[tuple[int, int]]:
        """Outputs and inputs of each consumer."""
        return [(c.consumer.out_features, c.consumer.in_features) for c in self._couplings]

    @property
    def weights(self) -> float:
        """GiB of all weights."""
        return self.parameters * self._widest.itemsize / GIB

    @property
    def _resident(self) -> float:
        """GiB of the weights that are on one device at once."""
        count = self.parameters - self._in_layers + self._in_layers / self._parts
        return count * self._widest.itemsize / GIB

    @cached_property
    def bank(self) -> BankSize | None:
        """Size of the least-squares bank; None: no weights are refitted."""
        if not instantiate(self.cfg.compensation).refits:
            return None
        space = instantiate(self.cfg.space, [c.prunable for c in self._couplings])
        shapes = {c.name: shape for c, shape in zip(self._couplings, self._consumers, strict=True)}
        of_sites = [shapes[site.name] for site in space.sites]
        devices = [self.device]
        if self._devices > 1:
            devices = [torch.device("cuda", i) for i in range(self._devices)]
        loading = self.weights - (self._in_layers * self._widest.itemsize / GIB) * bool(
            self._offload
        )
        return bank_size(of_sites, space, self._last, self.cfg.bank.max_gib, devices, loading)

    def _windows(self, part: str) -> int:
        """Tokens of a part of the text."""
        return int(self.cfg.text.windows[part] or _ALL) * int(self.cfg.text.window)

    def _states(self, tokens: int) -> float:
        """GiB of hidden states in front of one layer."""
        return tokens * self._hidden * self._widest.itemsize / GIB

    def _evaluations(self) -> int:
        drawn = drawn_labels(self.cfg) + self.cfg.get("test_policies", 0)
        if not isinstance(self.cfg.get("search"), DictConfig):  # elsewhere it names a folder
            return drawn
        rules, reported = len(set(self.cfg.rules) - {"uniform"}), len(self.cfg.get("ratios", []))
        return drawn + instantiate(self.cfg.search).evaluations(rules, reported)

    def needs(self, speeds: Speeds) -> list[Need]:
        """The needs of the stages that grow with the model, which are those up to the labels."""
        return [
            self._observing(speeds),
            self._building(speeds),
            self._differentiating(speeds),
            self._labelling(speeds),
        ]

    def _observing(self, speeds: Speeds) -> Need:
        """Moments, order (as `importance=obs` finds it) and features of the sites."""
        tokens, again = self._windows("calibration"), 1.25  # every fourth window is run twice
        squares = sum(columns**2 for _, columns in self._consumers)
        solved: float = sum(2 * n**3 + rows * n**2 for rows, n in self._consumers)
        if reads_spectra(self.cfg):
            solved += sum(3.5 * min(s) ** 2 * (2 * max(s) + 4 * min(s)) for s in self._consumers)
        seconds = tokens * (again * self._forward(speeds) + 2 * squares / speeds.single)
        memory = 2 * again * self._states(tokens) + self._solving
        return self._need(
            "observing the dense model", memory, 4 * squares / GIB, seconds + solved / speeds.double
        )

    def _building(self, speeds: Speeds) -> Need:
        if not self.bank:
            return self._need("building the bank", 0, 0, 0)
        products = sum(4 / 3 * n**3 + 4 * rows * n**2 for rows, n in self._consumers)
        memory = self._solving + self._of_bank
        return self._need("building the bank", memory, self.bank.disk, products / speeds.double)

    def _differentiating(self, speeds: Speeds) -> Need:
        """Expected losses, and gradients at the best policies; states lie in host memory."""
        windows, sets = self._gradients()
        tokens = self._windows("calibration") // 4 + sets * windows * self.cfg.text.window
        along = 2 * sum(columns * (rows + columns) for rows, columns in self._consumers)
        kept = activations(self._layers, self.cfg.text.window, self._widest)
        small = kept <= SMALL and not self._offload
        passes = 2 if small else 3  # a large model runs each layer again
        head = 4 * self._head / (speeds.model * _EFFICIENCY)
        seconds = tokens * (passes * self._forward(speeds) + head + along / speeds.model)
        states = (len(self._layers) + 1) * self._states(self._windows("calibration") // 4)
        memory = self._of_bank + kept / (1 if small else len(self._layers)) / GIB
        return self._need("gradients", memory, 0, seconds, states)

    def _gradients(self) -> tuple[int, int]:
        """Windows in a set for gradients at the best policies, and the largest number of sets."""
        predictor = unfitted(self.cfg.predictor) if self.cfg.get("predictor") else None
        windows = getattr(predictor, "windows", 0) if self.cfg.get("mode") != "dynamic" else 0
        return windows, 1 + self.labels // getattr(predictor, "renewal", 1) if windows else 0

    def _labelling(self, speeds: Speeds) -> Need:
        tokens = self._windows("labelling")
        each = tokens * (self._forward(speeds) + 2 * self._head / (speeds.model * _EFFICIENCY))
        copied = 0.0
        if self.bank and self.bank.factored:
            each += 2 * _LEVEL * sum(r * n**2 for r, n in self._consumers) / speeds.model
            copied = sum(rows * n for rows, n in self._consumers) * self._widest.itemsize / GIB
        elif "budget" in self.cfg and isinstance(instantiate(self.cfg.budget.cost), Bytes):
            linears = [linear for c in self._couplings for linear in c.linears]
            copied = sum(x.weight.numel() for x in linears) * self._widest.itemsize / GIB
        memory = self._of_bank + (len(self._layers) + 1) * self._states(tokens)
        there, elsewhere = (0.0, copied) if self._offload else (copied / self._devices, 0.0)
        seconds = self.labels * each
        return self._need(
            f"{self.labels} labels", memory + there, 0, seconds, self.processes * elsewhere
        )

    def _forward(self, speeds: Speeds) -> float:
        """Seconds of a token in all layers."""
        return 2 * self._in_layers / (speeds.model * _EFFICIENCY)

    @property
    def _solving(self) -> float:
        """GiB of the matrices, most of them in float64, for the solution of the widest site."""
        return max(8 * (5 * n**2 + 4 * rows * n) for rows, n in self._consumers) / GIB

    @property
    def _of_bank(self) -> float:
        """GiB of the bank's weights that stay in the memory of one device."""
        return self.bank.gib / self._devices if self.bank and self.bank.resident else 0.0

    def _need(
        self, stage: str, memory: float, disk: float, seconds: float, states: float = 0
    ) -> Need:
        """The need of all processes on the machine.

        Args:
            memory: GiB on the device of each process, besides the weights.
            states: further GiB of the host's memory on any device.
        """
        memory += self._resident
        if self.device.type == "cpu":
            memory = self.processes * (memory + _PROCESS) + states
            return Need(stage, memory, memory, disk, seconds)
        weights = self._resident if self._offload == "disk" else self.weights
        return Need(stage, memory, self.processes * (weights + _PROCESS) + states, disk, seconds)


def drawn_labels(cfg: DictConfig) -> int:
    """Policies that are drawn and labelled before a search, the dense one included."""
    if cfg.labels.count is not None:
        return int(cfg.labels.count)
    predictor = cfg.get("predictor")
    return _DRAWN if predictor and needs_labels(unfitted(predictor)) else 1


def check_capacity(cfg: DictConfig, fabric: Fabric, dtype: str | None = None) -> None:
    """Compares a config with this machine before any work starts.

    Rank 0 compares for all, before another rank takes memory. A model whose config is not available
    before its weights are loaded is not checked.

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
        if sentence := _too_large(plan, plan.needs(Speeds())):
            raise PPFError(sentence)

    on_rank_0(fabric, compare)


def show(cfg: DictConfig) -> None:
    """Prints memory, disk and time of each stage, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    device, processes = fabric.device, processes_here(fabric)
    dtype = resolve_dtype(cfg.model.dtype, device)
    plan = Plan(cfg, device, processes)
    found = plan.needs(_measured_speeds(dtype, device))
    say(
        f"Plan for model={cfg.model.name}: {plan.parameters / 1e9:.2f} billion parameters,"
        f" {plan.weights:.1f} GiB in {dtype_name(dtype)} on the {device.type}. Memory and disk are"
        f" those of {processes} process{'es' * (processes > 1)} on this machine, times those of one"
        " process that does all of the work."
    )
    names = ("memory of a GPU, GiB", "memory, GiB", "disk, GiB", "time")
    on_cpu = device.type == "cpu"

    def row(stage: str, memory: float, *others: float | None) -> dict[str, Cell]:
        return {
            "stage": stage,
            **dict(zip(names, (None if on_cpu else memory, *others), strict=True)),
        }

    most, sums = [[f(c) for c in zip(*(n[1:] for n in found), strict=True)] for f in (max, sum)]
    rows = [row(*need) for need in found]
    rows += [row("whole run", *most[:2], *sums[2:]), row("free here", *_free(cfg, device), None)]
    print_table(Table(rows, dict.fromkeys(names[:3], "{:.1f}".format) | {"time": duration}))
    say(
        "Agents and predictors add some minutes for any model; the measurements on the selection"
        " and test parts, and those of an agent with predictor=oracle, are not counted."
    )
    sentence = _too_large(plan, found)
    say(f"It does not fit: {sentence}" if sentence else "It fits.")


def _too_large(plan: Plan, found: list[Need]) -> str | None:
    """One sentence on what does not fit; None: all fits."""
    memory, host, disk = _free(plan.cfg, plan.device)
    name = f"model={plan.cfg.model.name}"
    if (written := sum(need.disk for need in found)) > disk:
        return (
            f"{name} needs {written:.1f} GiB of disk, but {disk:.1f} GiB are free in"
            f" {plan.cfg.paths.artefacts}: give another disk's folder with paths.artefacts=FOLDER."
        )
    wrong = [need for need in found if need.memory > memory or need.host > host]
    if not wrong:
        return None
    worst = max(wrong, key=lambda need: (need.memory, need.host))
    return (
        f"{worst.stage} of {name} needs {worst.memory:.1f} GiB of memory ({worst.host:.1f} GiB of"
        f" the host), but {memory:.1f} GiB ({host:.1f} GiB) are free: give model.dtype=bfloat16,"
        " bank.max_gib=0.0, fewer text.windows, or model.offload=disk, or use a larger machine."
    )


def _free(cfg: DictConfig, device: torch.device) -> tuple[float, float, float]:
    """GiB that are free: on the device, of the host's memory, and on the disk of the artefacts.

    What statistics and bank of this config take already counts as free.
    """
    host = min(psutil.virtual_memory().available, _left_in_group()) / GIB
    memory = torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else host
    artefacts = Path(cfg.paths.artefacts)
    there = next(x for x in (artefacts, *artefacts.absolute().parents) if x.exists())
    made: list[Path] = []
    if (artefacts / "statistics").is_dir():  # signatures may have to read the model's files
        names = signatures(cfg, device)
        made = [*artefacts.glob(f"statistics/{names.statistics}*/*")]
        made += artefacts.glob(f"bank/{names.bank}/*/*")
    written = sum(file.stat().st_size for file in made)
    return memory, host, (shutil.disk_usage(there).free + written) / GIB


def _left_in_group() -> float:
    """Bytes that this process's Linux control group, as of a container or Slurm job, may take."""
    group = Path("/sys/fs/cgroup")
    try:
        name = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::/")[2].strip()
        group = group / name if (group / name / "memory.max").is_file() else group
        limit, used = (group / f"memory.{key}" for key in ("max", "current"))
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # no such groups, or no limit ("max")
        return math.inf


def _measured_speeds(dtype: torch.dtype, device: torch.device) -> Speeds:
    """Times matrix products on the device; takes about a second."""

    def speed(kind: torch.dtype) -> float:
        side = 1024 if device.type == "cpu" else 8192
        matrix, seconds = torch.ones(side, side, dtype=kind, device=device), []
        for _ in range(3):
            start = time.perf_counter()
            _ = matrix @ matrix
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        return 2 * side**3 / min(seconds)

    return Speeds(*map(speed, (dtype, torch.float32, torch.float64)))
