"""Time, memory and disk that a command needs, from the model's config alone, and what is free."""

import math
import shutil
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig
from torch.utils.benchmark import Timer

from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.llm.backward import SMALL, activations
from ppf.llm.loading import place_of_layers, resolve_dtype
from ppf.llm.shapes import skeleton
from ppf.predictor.base import drawn_labels, unfitted
from ppf.processes import processes_here
from ppf.progress import say
from ppf.pruning.bank import factors_gib, levels_gib, solving_gib
from ppf.pruning.signatures import signatures
from ppf.pruning.statistics import blocks_of
from ppf.ranks import on_rank_0
from ppf.report.numbers import duration
from ppf.report.tables import Table, print_table

GIB = 2**30
_TIMED = 0.2  # seconds of each timing


class Speed(NamedTuple):
    """Seconds of a token in a decoder layer, and of an operation of a large float32 product."""

    layer: float
    product: float

    @classmethod
    @torch.inference_mode()
    def measured(cls, cfg: DictConfig, device: torch.device) -> "Speed":
        """The speed at this moment; takes a second, and the memory of a model of one layer."""
        model, adapter = skeleton(cfg.model)
        del adapter.layers(model)[1:]
        model.config.get_text_config().num_hidden_layers = 1
        decoder = model.base_model.to(resolve_dtype(cfg.model.dtype, device))
        decoder.to_empty(device=device)
        for tensor in chain(adapter.layers(model).parameters(), decoder.buffers()):
            tensor.fill_(0.01)
        ids = torch.zeros(1, int(cfg.text.window), dtype=torch.long, device=device)
        square = torch.ones([1024 if device.type == "cpu" else 8192] * 2, device=device)
        layer = _timed("decoder(ids, use_cache=False)", decoder=decoder, ids=ids)
        return cls(layer / ids.numel(), _timed("x @ x", x=square) / (2 * len(square) ** 3))


class Plan:
    """What a config needs at most; `benchmarks/plans.py` compares it with runs.

    Args:
        cfg: with model, text, space, compensation, labels and bank; of a search also its sections.
        device: of one process.
        dtype: in which the weights are loaded again, after `model.dtype`; None: they are not.

    Attributes:
        parameters: of the model.
        left: GiB of the weights that the (mean) ratio leaves.
        labels: number of policies that are measured.

    Raises:
        PPFError: the structure of the model is not known without its weights.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, dtype: str | None = None) -> None:
        self.cfg, self.device = cfg, device
        self._model, adapter = skeleton(cfg.model)
        self._layers, self._couplings = adapter.layers(self._model), adapter.couplings(self._model)
        dtypes = (resolve_dtype(x, device) for x in (cfg.model.dtype, dtype or cfg.model.dtype))
        self._dtype = max(dtypes, key=lambda each: each.itemsize)
        self.parameters, self._in_layers = parameters(self._model), parameters(self._layers)
        ratios = [*cfg.get("ratios", [cfg.get("ratio", 0.0)])]
        self._ratio = sum(ratios) / len(ratios)
        self._number = self._dtype.itemsize / GIB
        self.left = (self.parameters - self._ratio * self._in_layers) * self._number
        counts = (cfg.text.windows[part] for part in ("calibration", "labelling", "test"))
        self._tokens = [int(cfg.text.window) * int(count or 1024) for count in counts]  # null: all
        self.labels = drawn_labels(cfg) + cfg.get("test_policies", 0)
        self._searches = isinstance(cfg.get("search"), DictConfig)  # elsewhere it names a folder
        if self._searches:
            rules, reported = len(set(cfg.rules) - {"uniform"}), len(cfg.get("ratios", []))
            self.labels += instantiate(cfg.search).evaluations(rules, reported)

    def seconds(self, speed: Speed) -> dict[str, float]:
        """The time of each stage, in order, by one process of this speed."""
        cfg, (calibration, labelling, test) = self.cfg, self._tokens
        blocks, window = [*map(blocks_of, self._couplings)], int(cfg.text.window)
        squares, cubes = (sum(count * n**power for count, n in blocks) for power in (2, 3))
        # Seconds of a token in the dense model, in a pruned one, and for its gradients.
        head = 0.7 * self._model.get_output_embeddings().weight.numel() / self._in_layers
        once = len(self._layers) * speed.layer
        dense, pruned = (once * (share + head) for share in (1, 1 - self._ratio))
        gradient = 2.4 * dense + 0.6 * squares * speed.product
        # Operations for moments; for order and bank; for spectra and features.
        operations = 1.2 * calibration * squares + 6.5 * cubes + 2e4 * self._in_layers
        stages = {
            "preparing the model": 1.25 * calibration * once + operations * speed.product,
            "labels": self.labels * labelling * pruned,
        }
        if self._searches:
            predictor, again = unfitted(cfg.predictor), cfg.search.get("rounds", 1) > 1
            sets = self.labels // getattr(predictor, "renewal", 1) if again else 0
            tokens = calibration / 4 + sets * getattr(predictor, "windows", 0) * window
            stages["gradients, predictor, agent"] = tokens * gradient
            selection = cfg.search.get("selection_windows", 0) * window
            stages["selection part"] = 4 * selection * pruned
            if cfg.sequential and cfg.mode == "static":  # the dense stream, the pruned one twice
                one = once * (3 - 2 * self._ratio) + 2 * squares * speed.product
                stages["sequential compensation"] = int(cfg.refit_windows or 1024) * window * one
            stages["test part"] = cfg.report_test * test * (dense + 8 * pruned)
        return stages

    def gib(self, processes: int = 1) -> tuple[float, float]:
        """GiB of memory (of one GPU, or of all processes on this machine), and of disk."""
        cfg, depth, on_cpu = self.cfg, len(self._layers), self.device.type == "cpu"
        (calibration, labelling, _), number = self._tokens, self._number
        consumers = {c.name: c.consumer for c in self._couplings}
        weights = {name: (x.out_features, x.in_features) for name, x in consumers.items()}
        blocks = {c.name: blocks_of(c) for c in self._couplings}
        disk = 4 * sum(count * n**2 for count, n in blocks.values()) / GIB  # of moments
        levels = 0.0  # of the bank
        if instantiate(cfg.compensation).refits:
            space = instantiate(cfg.space, [c.prunable for c in self._couplings])
            # The levels of large mixtures have parts of the dense weights.
            names = [site.name for site in space.sites]
            sites = [weights[name] if blocks[name][0] == 1 else (0, 0) for name in names]
            disk += factors_gib([shape for shape in sites if any(shape)], self._dtype)
            levels = min(cfg.bank.max_gib, levels_gib(sites, space, self._dtype))
            levels = max(levels, sum(rows * n for rows, n in sites) * number)  # one policy's
        if cfg.get("budget", {}).get("name") == "bytes":  # a policy's quantised weights
            levels = max(levels, self._in_layers * number)
        state = self._model.config.hidden_size * number  # of a token between layers
        solving = max(solving_gib(*weights[name], *blocks[name]) for name in weights)
        solving += 2.5 * calibration * state
        if cfg.get("sequential"):  # the states of all windows, and the inputs of a consumer
            widest = max(columns for _, columns in weights.values()) * number
            refitted = int(cfg.refit_windows or 1024) * int(cfg.text.window)
            solving = max(solving, refitted * (5 * state + widest))
        measuring = levels + (depth + 1) * state * (labelling + on_cpu * calibration / 4)
        if self._searches:  # activations for gradients
            window = int(cfg.text.window)
            one = activations(self._layers, window, self._dtype)  # bytes of a window
            kept = min(SMALL // one, calibration // window // 4) * one or one / depth
            measuring += kept / GIB
        resident = self.parameters * number
        if place_of_layers(cfg.model, self.device):
            resident -= self._in_layers * number * (1 - 1 / depth)
        memory = resident + max(solving, measuring)
        if on_cpu:  # with Python, PyTorch and transformers
            return processes * (memory + 0.7), disk
        return memory / (torch.cuda.device_count() if cfg.model.get("device_map") else 1), disk


def check_capacity(cfg: DictConfig, fabric: Fabric, dtype: str | None = None) -> None:
    """Compares a config with this machine before any work starts, on rank 0 for all.

    Args:
        cfg, dtype: as for `Plan`.

    Raises:
        PPFError: memory or disk do not suffice.
    """

    def compare() -> str | None:
        with suppress(PPFError):  # the model's structure is not known without its weights
            needed = Plan(cfg, fabric.device, dtype).gib(processes_here(fabric))
            return _fault(needed, free_gib(cfg, fabric.device))
        return None

    if fault := on_rank_0(fabric, compare):
        raise PPFError(f"model={cfg.model.name}: {fault}")


def show(cfg: DictConfig) -> None:
    """Prints the time of each stage, memory and disk, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    plan, speed = Plan(cfg, fabric.device), Speed.measured(cfg, fabric.device)
    needed, free = plan.gib(processes_here(fabric)), free_gib(cfg, fabric.device)
    times = {stage: seconds for stage, seconds in plan.seconds(speed).items() if seconds}
    rows = [*times.items(), ("whole run", sum(times.values()))]
    print_table(Table([{"stage": x, "time": time} for x, time in rows], {"time": duration}))
    memory, disk = (f"{x:.1f} GiB of {y:.1f}" for x, y in zip(needed, free, strict=True))
    say(
        f"model={cfg.model.name} has {plan.parameters / 1e9:.2f} billion parameters; the result has"
        f" about {plan.left:.1f} GiB. Times are those of one process with {plan.labels} labels at"
        f" the present speed: {1e3 * speed.layer:.3g} ms for a token in a decoder layer,"
        f" {1e-9 / speed.product:.0f} GFLOP/s in a large product in float32. The run needs {memory}"
        f" of memory that are free, and {disk} of disk."
    )
    fault = _fault(needed, free)
    say(f"It does not fit: {fault}" if fault else "It fits.")


def _fault(needed: tuple[float, float], free: tuple[float, float]) -> str | None:
    """What does not fit into the GiB of free memory and disk; None: all fits."""
    remedies = (
        ("memory", "lower bank.max_gib or text.windows, or give model.offload=disk"),
        ("disk", "give another disk's folder with paths.artefacts=FOLDER"),
    )
    for (kind, remedy), need, have in zip(remedies, needed, free, strict=True):
        if need > have:
            return f"it needs {need:.1f} GiB of {kind}, but {have:.1f} GiB are free: {remedy}."
    return None


def free_gib(cfg: DictConfig, device: torch.device) -> tuple[float, float]:
    """GiB of free memory and disk; statistics and banks that this config has made count as free."""
    on_cpu, artefacts = device.type == "cpu", Path(cfg.paths.artefacts)
    system = psutil.virtual_memory().available
    memory = min(system, group_limit()) if on_cpu else torch.cuda.mem_get_info(device)[0]
    there = next(x for x in (artefacts, *artefacts.absolute().parents) if x.exists())
    disk = shutil.disk_usage(there).free
    if (artefacts / "statistics").is_dir():  # signatures may have to read the model's files
        names = signatures(cfg, device)
        patterns = f"statistics/{names.statistics}*/*", f"bank/{names.bank}/*/*"
        disk += sum(file.stat().st_size for x in patterns for file in artefacts.glob(x))
    return memory / GIB, disk / GIB


def group_limit(membership: str = "/proc/self/cgroup", top: str = "/sys/fs/cgroup") -> float:
    """Bytes that the Linux control groups of this process, as of a Slurm job, may use in all.

    Args:
        membership: the file that names its group. Groups above it may have lower limits.
        top: folder of all groups.
    """
    limits = [math.inf]
    with suppress(OSError):
        name = Path(membership).read_text(encoding="utf-8").rpartition("::/")[2].strip()
        for group in (Path(top, name), *Path(top, name).parents):
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limits.append(int((group / "memory.max").read_text()))
    return min(limits)


def _timed(code: str, **given: Any) -> float:
    timer = Timer(code, globals=given, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=_TIMED).times)
