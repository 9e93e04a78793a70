"""Time, memory and disk that a command needs on this machine, from the model's config alone."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.llm.backward import SMALL, activations
from ppf.llm.loading import dtype_name, place_of_layers, resolve_dtype
from ppf.llm.shapes import skeleton
from ppf.machine import Speed, free_memory
from ppf.predictor.base import drawn_labels, unfitted
from ppf.processes import processes_here
from ppf.progress import say
from ppf.pruning.bank import factors_fit, factors_gib, levels_gib
from ppf.pruning.observed import reads_spectra
from ppf.pruning.signatures import signatures
from ppf.ranks import on_rank_0
from ppf.report.numbers import duration
from ppf.report.tables import Table, print_table

GIB = 2**30
_AGAIN = 1.25  # every fourth calibration window is run twice
_ALL = 1024  # windows that are assumed where a text gives all it has
_PROCESS = 0.7  # GiB that Python, PyTorch and transformers take
PREPARING, LABELS, GRADIENTS = "preparing the model", "labels", "gradients, predictor, agent"
SELECTION, TEST = "selection part", "test part"
_FINALISTS = 4  # policies on the selection part
_TESTED = 8  # pruned policies on the test part
# Work of routines, as benchmarks/preparation.py and benchmarks/plans.py measure it.
_MOMENTS, _ORDER, _BANK = 1.2, 1.8, 1.3  # operations for each token's products, and each solve
_SPECTRA = 100  # operations for the eigenvalues of a layer's weights, in cubes of the hidden size
_TRAITS = 6000  # operations for the statistics of one weight that allocation rules read
_LEVEL = 0.7  # operations of one level's weight, relative to those of the whole weight
_HEAD = 0.7  # time of the output head, relative to as many weights in layers
_BACKWARD = 2.4  # time of a gradient, relative to a forward pass
_ROUND = 3e9  # operations in whose time agent and predictor process one proposal's site


class Need(NamedTuple):
    """The needs of one stage.

    Args:
        seconds: its duration if one process does all of it.
        memory: GiB at its peak, of one process's GPU, or of the host for all processes on it.
        disk: GiB that it writes.
    """

    stage: str
    seconds: float
    memory: float
    disk: float = 0.0


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
        left: GiB of them at the ratio, or at the mean of several ratios.
        labels: largest number of policies that are measured, of which `drawn` before a search.

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
        self._hidden, self._window = model.config.hidden_size, int(cfg.text.window)
        shapes = {c.name: (c.consumer.out_features, c.consumer.in_features) for c in couplings}
        self._shapes = list(shapes.values())
        self.parameters, self._in_layers = parameters(model), parameters(self._layers)
        self._head = model.get_output_embeddings().weight.numel()
        self._offload = place_of_layers(cfg.model, device)
        divided = cfg.model.get("device_map") and device.type == "cuda"
        gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        devices = gpus if divided else [device]
        self._devices = len(devices)
        shared = len(self._layers) if self._offload else self._devices
        ratios = [*cfg.get("ratios", [cfg.get("ratio", 0.0)])]
        self._ratio = sum(ratios) / len(ratios)
        self.weights = self._gib(self.parameters)
        self.left = self._gib(self.parameters - self._ratio * self._in_layers)
        self._resident = self._gib(self.parameters - self._in_layers * (1 - 1 / shared))
        self.drawn = self.labels = drawn_labels(cfg) + cfg.get("test_policies", 0)
        if isinstance(cfg.get("search"), DictConfig):  # elsewhere it names a folder
            rules, reported = len(set(cfg.rules) - {"uniform"}), len(cfg.get("ratios", []))
            self.labels += instantiate(cfg.search).evaluations(rules, reported)
            self._proposals = self.labels - self.drawn - rules - 1
        self._bank = self._held = self._computed = 0.0  # GiB: files; what is in memory
        if instantiate(cfg.compensation).refits:
            space = instantiate(cfg.space, [c.prunable for c in couplings])
            given = [shapes[site.name] for site in space.sites]
            self._bank = factors_gib(given, dtypes[-1])
            if factors_fit(self._bank, devices, self._resident * self._devices):
                self._held = self._bank / self._devices
            computed = min(cfg.bank.max_gib, levels_gib(given, space, dtypes[-1]))
            self._computed = computed / self._devices

    def needs(self, speed: Speed | None = None) -> list[Need]:
        """The needs of each stage, in order; without a speed, no stage takes time."""
        layer, single, double = speed or (0.0, 0.0, 0.0)
        layers, state = len(self._layers), self._gib(self._hidden)  # of a token before a layer
        given = self.cfg.text.windows
        parts = given.calibration, given.labelling, given.test
        calibration, labelling, test = (int(part or _ALL) * self._window for part in parts)
        head = _HEAD * self._head * layers / self._in_layers * layer
        dense = layers * layer + head  # seconds of a token
        pruned = layers * layer * (1 - self._ratio) + head
        squares, cubes = (sum(n**power for _, n in self._shapes) for power in (2, 3))
        wide = sum(rows * n**2 for rows, n in self._shapes)

        seconds = _AGAIN * calibration * layers * layer + _ORDER * cubes * double
        seconds += (_MOMENTS * calibration * squares + _BANK * (cubes + 4 * wide)) * single
        seconds += _TRAITS * self._in_layers * single
        if reads_spectra(self.cfg):
            seconds += _SPECTRA * layers * self._hidden**3 * double
        memory = max(2 * _AGAIN * calibration * state, self._held) + solving(self._shapes)
        found = [self._need(PREPARING, seconds, memory, disk=4 * squares / GIB + self._bank)]

        levels = _LEVEL * wide * single if self._bank else 0.0
        copied = self._gib(sum(rows * n for rows, n in self._shapes))  # one policy's levels
        if self.cfg.get("budget", {}).get("name") == "bytes":
            copied = self._gib(self._in_layers)
        if self._offload and self.device.type == "cuda":
            copied = 0.0  # to the memory of the host
        of_bank = self._held + max(self._computed, copied / self._devices)
        memory = of_bank + (layers + 1) * labelling * state
        measured = self.labels - self.drawn
        seconds = labelling * (self.drawn * dense + measured * pruned) + self.labels * levels
        found.append(self._need(LABELS, seconds, memory))
        if not measured:
            return found

        # Expected losses, and gradients at the best policies; a large model runs each layer again.
        predictor = unfitted(self.cfg.predictor)
        windows = getattr(predictor, "windows", 0) if self.cfg.mode != "dynamic" else 0
        again = self.cfg.search.get("rounds", 1) > 1
        sets = self._proposals // getattr(predictor, "renewal", 1) if again else 0
        seconds = _BACKWARD * dense + _MOMENTS / 2 * squares * single
        seconds *= sets * windows * self._window + calibration / 4
        seconds += _ROUND * self._proposals * len(self._shapes) * single
        one = activations(self._layers, self._window, self._dtype) / GIB  # a window's
        kept = min(SMALL / GIB // one, calibration // self._window // 4) * one
        kept = one / layers if self._offload or not kept else kept
        states = (layers + 1) * calibration / 4 * state
        found.append(self._need(GRADIENTS, seconds, of_bank + kept, on_host=states))
        selection = self.cfg.search.get("selection_windows", 0) * self._window
        found.append(self._need(SELECTION, _FINALISTS * selection * pruned, memory))
        if self.cfg.report_test:
            found.append(self._need(TEST, test * (dense + _TESTED * pruned), memory))
        return found

    def _gib(self, numbers: float) -> float:
        """GiB of numbers in the widest dtype in which the weights are loaded."""
        return numbers * self._dtype.itemsize / GIB

    def _need(
        self, stage: str, seconds: float, memory: float, *, disk: float = 0.0, on_host: float = 0.0
    ) -> Need:
        """The need of a stage; `memory` is that of a process besides the weights, in GiB."""
        memory += self._resident
        if self.device.type == "cpu":
            memory = self.processes * (memory + _PROCESS) + on_host
        return Need(stage, seconds, memory, disk)


def solving(shapes: Sequence[tuple[int, int]]) -> float:
    """GiB of the matrices, most of them in float64, for the solution of the widest of matrices."""
    return max(8 * (5 * n**2 + 4 * rows * n) for rows, n in shapes) / GIB


def check_capacity(cfg: DictConfig, fabric: Fabric, dtype: str | None = None) -> None:
    """Compares a config with this machine before any work starts, on rank 0 for all.

    Args:
        cfg, dtype: as for `Plan`.

    Raises:
        PPFError: memory or disk do not suffice.
    """

    def compare() -> str | None:
        with suppress(PPFError):  # the model's structure is not known without its weights
            plan = Plan(cfg, fabric.device, processes_here(fabric), dtype)
            return _fault(plan.needs(), _free(cfg, fabric.device))
        return None

    if fault := on_rank_0(fabric, compare):
        raise PPFError(f"model={cfg.model.name}: {fault}")


def show(cfg: DictConfig) -> None:
    """Prints time, memory and disk of each stage, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    device, processes = fabric.device, processes_here(fabric)
    plan, free = Plan(cfg, device, processes), _free(cfg, device)
    speed = Speed.measured(cfg, device)
    needs, dtype = plan.needs(speed), dtype_name(resolve_dtype(cfg.model.dtype, device))
    say(
        f"Plan for model={cfg.model.name}: {plan.parameters / 1e9:.2f} billion parameters,"
        f" {plan.weights:.1f} GiB in {dtype} on the {device.type}; the result has about"
        f" {plan.left:.1f} GiB. Times are those of one process with {plan.labels} labels at the"
        f" present speed: {1e3 * speed.layer:.3g} ms for a token in a decoder layer,"
        f" {1e-9 / speed.single:.0f} GFLOP/s in a large product in float32. Memory and disk are"
        f" those of {processes} process{'es' * (processes > 1)} on this machine."
    )
    _, seconds, memory, disk = zip(*needs, strict=True)
    rows = [*needs, ("whole run", sum(seconds), max(memory), sum(disk)), ("free here", None, *free)]
    names = ("stage", "time", "memory, GiB", "disk, GiB")
    shown = [dict(zip(names, row, strict=True)) for row in rows]
    print_table(Table(shown, {"time": duration} | dict.fromkeys(names[2:], "{:.1f}".format)))
    say(_fault(needs, free) or "It fits.")


def _fault(needs: Sequence[Need], free: tuple[float, float]) -> str | None:
    """What does not fit into what `_free` returns, and what helps; None: all fits."""
    wanted = max(need.memory for need in needs), sum(need.disk for need in needs)
    if all(need <= there for need, there in zip(wanted, free, strict=True)):
        return None
    return (
        "It does not fit: it needs {:.1f} GiB of memory and {:.1f} GiB of disk, but {:.1f} and"
        " {:.1f} GiB are free: give model.dtype=bfloat16, bank.max_gib=0.0, fewer text.windows,"
        " model.offload=disk, or another disk's folder with paths.artefacts=FOLDER."
    ).format(*wanted, *free)


def _free(cfg: DictConfig, device: torch.device) -> tuple[float, float]:
    """GiB of free memory and disk; statistics and banks that this config has made count as free."""
    artefacts = Path(cfg.paths.artefacts)
    there = next(x for x in (artefacts, *artefacts.absolute().parents) if x.exists())
    disk = shutil.disk_usage(there).free
    if (artefacts / "statistics").is_dir():  # signatures may have to read the model's files
        names = signatures(cfg, device)
        made = [*artefacts.glob(f"statistics/{names.statistics}*/*")]
        made += artefacts.glob(f"bank/{names.bank}/*/*")
        disk += sum(file.stat().st_size for file in made)
    return free_memory(device) / GIB, disk / GIB
