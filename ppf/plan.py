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
from ppf.pruning.bank import BankSize, bank_size
from ppf.pruning.costs import Bytes
from ppf.pruning.observed import reads_spectra
from ppf.pruning.signatures import signatures
from ppf.ranks import on_rank_0
from ppf.report.scores import duration
from ppf.report.tables import Table, print_table

GIB = 2**30
_ALL = 1024  # windows that are assumed where a text gives all it has
_DRAWN = 128  # policies that are labelled for a predictor that needs labels
_EFFICIENCY = 0.5  # of a model's layers, relative to the speed of one large product
_LEVEL = 0.28  # cost of a level from its factors, relative to a product with all columns
_PROCESS = 0.7  # GiB that Python, PyTorch and transformers take


class Need(NamedTuple):
    """The needs of one stage on a machine, not less than what it takes.

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
    """Floating-point operations a second of a large product, in the model's dtype and float64."""

    model: float = 1.0
    double: float = 1.0


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
        self._widest, self._last = max(dtypes, key=lambda each: each.itemsize), dtypes[-1]
        self._layers, self._hidden = adapter.layers(model), model.config.hidden_size
        self._couplings = adapter.couplings(model)
        self._consumers = [
            (c.consumer.out_features, c.consumer.in_features) for c in self._couplings
        ]
        self.parameters, self._in_layers = parameters(model), parameters(self._layers)
        self._head = model.get_output_embeddings().weight.numel()
        self._offload = place_of_layers(cfg.model, device)
        divided = cfg.model.get("device_map") and device.type == "cuda"
        self._devices = torch.cuda.device_count() if divided else 1
        at_once = self._in_layers / (len(self._layers) if self._offload else self._devices)
        self.weights = self.parameters * self._widest.itemsize / GIB
        self._outside = (self.parameters - self._in_layers) * self._widest.itemsize / GIB
        self._resident = self._outside + at_once * self._widest.itemsize / GIB
        self.labels = drawn_labels(cfg) + cfg.get("test_policies", 0)
        if isinstance(cfg.get("search"), DictConfig):  # elsewhere it names a folder
            rules, reported = len(set(cfg.rules) - {"uniform"}), len(cfg.get("ratios", []))
            self.labels += instantiate(cfg.search).evaluations(rules, reported)
        self._solving = solving(self._consumers)
        self.bank = self._bank()
        in_memory = self.bank and self.bank.resident
        self._of_bank = self.bank.gib / self._devices if self.bank and in_memory else 0.0

    def _bank(self) -> BankSize | None:
        """Size of the least-squares bank; None: no weights are refitted."""
        if not instantiate(self.cfg.compensation).refits:
            return None
        space = instantiate(self.cfg.space, [c.prunable for c in self._couplings])
        shapes = {c.name: shape for c, shape in zip(self._couplings, self._consumers, strict=True)}
        devices = [self.device]
        if self._devices > 1:
            devices = [torch.device("cuda", i) for i in range(self._devices)]
        loading = self._outside if self._offload else self.weights
        given = [shapes[site.name] for site in space.sites], space, self._last
        return bank_size(*given, self.cfg.bank.max_gib, devices, loading)

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
        tokens, again = self._tokens("calibration"), 1.25  # every fourth window is run twice
        squares = sum(columns**2 for _, columns in self._consumers)
        solved: float = sum(2 * n**3 + rows * n**2 for rows, n in self._consumers)
        if reads_spectra(self.cfg):
            solved += sum(3.5 * min(s) ** 2 * (2 * max(s) + 4 * min(s)) for s in self._consumers)
        seconds = tokens * again * self._forward(speeds)
        seconds += (2 * tokens * squares + solved) / speeds.double
        memory = 2 * again * self._states(tokens) + self._solving
        return self._need("observing the dense model", memory, 4 * squares / GIB, seconds)

    def _building(self, speeds: Speeds) -> Need:
        if not self.bank:
            return self._need("building the bank", 0, 0, 0)
        products = sum(4 / 3 * n**3 + 4 * rows * n**2 for rows, n in self._consumers)
        memory, seconds = self._solving + self._of_bank, products / speeds.double
        return self._need("building the bank", memory, self.bank.disk, seconds)

    def _differentiating(self, speeds: Speeds) -> Need:
        """Expected losses, and gradients at the best policies; states lie in host memory."""
        predictor = unfitted(self.cfg.predictor) if self.cfg.get("predictor") else None
        windows = getattr(predictor, "windows", 0) if self.cfg.get("mode") != "dynamic" else 0
        sets = 1 + self.labels // getattr(predictor, "renewal", 1) if windows else 0
        dense = self._tokens("calibration") // 4
        tokens = dense + sets * windows * self.cfg.text.window
        along = 2 * sum(columns * (rows + columns) for rows, columns in self._consumers)
        head = 4 * self._head / (speeds.model * _EFFICIENCY)
        # A large model runs each layer again.
        seconds = tokens * (3 * self._forward(speeds) + head + along / speeds.model)
        kept = activations(self._layers, self.cfg.text.window, self._widest)
        if kept > SMALL or self._offload:
            kept //= len(self._layers)
        states = (len(self._layers) + 1) * self._states(dense)
        return self._need("gradients", self._of_bank + kept / GIB, 0, seconds, states)

    def _labelling(self, speeds: Speeds) -> Need:
        tokens = self._tokens("labelling")
        each = tokens * (self._forward(speeds) + 2 * self._head / (speeds.model * _EFFICIENCY))
        numbers = 0  # of the weights that a policy computes
        if self.bank and self.bank.factored:
            each += 2 * _LEVEL * sum(r * n**2 for r, n in self._consumers) / speeds.model
            numbers = sum(rows * n for rows, n in self._consumers)
        elif "budget" in self.cfg and isinstance(instantiate(self.cfg.budget.cost), Bytes):
            numbers = sum(x.weight.numel() for c in self._couplings for x in c.linears)
        copied = numbers * self._widest.itemsize / GIB
        memory = self._of_bank + (len(self._layers) + 1) * self._states(tokens)
        there, elsewhere = (0.0, copied) if self._offload else (copied / self._devices, 0.0)
        seconds, others = self.labels * each, self.processes * elsewhere
        return self._need(f"{self.labels} labels", memory + there, 0, seconds, others)

    def _tokens(self, part: str) -> int:
        """Tokens of a part of the text."""
        return int(self.cfg.text.windows[part] or _ALL) * int(self.cfg.text.window)

    def _states(self, tokens: int) -> float:
        """GiB of hidden states in front of one layer."""
        return tokens * self._hidden * self._widest.itemsize / GIB

    def _forward(self, speeds: Speeds) -> float:
        """Seconds of a token in all layers."""
        return 2 * self._in_layers / (speeds.model * _EFFICIENCY)

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
        needs, free = plan.needs(Speeds()), _free(cfg, fabric.device)
        if not (verdict := _verdict(needs, free)).startswith(_FITS):
            raise PPFError(f"model={cfg.model.name}: {verdict}")

    on_rank_0(fabric, compare)


def show(cfg: DictConfig) -> None:
    """Prints memory, disk and time of each stage, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    device, processes = fabric.device, processes_here(fabric)
    dtype = resolve_dtype(cfg.model.dtype, device)
    plan = Plan(cfg, device, processes)
    needs, free = plan.needs(_measured_speeds(dtype, device)), _free(cfg, device)
    say(
        f"Plan for model={cfg.model.name}: {plan.parameters / 1e9:.2f} billion parameters,"
        f" {plan.weights:.1f} GiB in {dtype_name(dtype)} on the {device.type}. Memory and disk are"
        f" those of {processes} process{'es' * (processes > 1)} on this machine, times those of one"
        " process that does all of the work. Agents, predictors and measurements on other parts of"
        " the text are not counted."
    )
    most, sums = ([f(c) for c in zip(*(n[1:] for n in needs), strict=True)] for f in (max, sum))
    rows = [*needs, ("whole run", *most[:2], *sums[2:]), ("free here", *free, None)]
    names = ("stage", "memory of a GPU, GiB", "memory, GiB", "disk, GiB", "time")
    shown = [dict(zip(names, row, strict=True)) for row in rows]
    if device.type == "cpu":
        shown = [row | {names[1]: None} for row in shown]
    print_table(Table(shown, dict.fromkeys(names[1:4], "{:.1f}".format) | {"time": duration}))
    say(_verdict(needs, free))


_FITS = "It fits."


def _verdict(needs: Sequence[Need], free: tuple[float, float, float]) -> str:
    """One sentence: whether a machine suffices, or which override helps.

    Args:
        free: see `_free`.
    """
    memory, host, disk = free
    if (written := sum(need.disk for need in needs)) > disk:
        return (
            f"It does not fit: it needs {written:.1f} GiB of disk, but {disk:.1f} GiB are free:"
            " give another disk's folder with paths.artefacts=FOLDER."
        )
    wrong = [need for need in needs if need.memory > memory or need.host > host]
    if not wrong:
        return _FITS
    worst = max(wrong, key=lambda need: (need.memory, need.host))
    return (
        f"It does not fit: {worst.stage} needs {worst.memory:.1f} GiB of memory ({worst.host:.1f}"
        f" GiB of the host), but {memory:.1f} GiB ({host:.1f} GiB) are free: give"
        " model.dtype=bfloat16, bank.max_gib=0.0, fewer text.windows, or model.offload=disk, or"
        " use a larger machine."
    )


def _free(cfg: DictConfig, device: torch.device) -> tuple[float, float, float]:
    """GiB that are free: on the device, of the host's memory, and on the disk of the artefacts.

    What statistics and bank of this config take already counts as free.
    """
    host = min(psutil.virtual_memory().available, left_by_groups()) / GIB
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

    return Speeds(speed(dtype), speed(torch.float64))
