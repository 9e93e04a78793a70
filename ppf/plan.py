"""Time, memory and disk that a command needs on this machine, from the model's config alone."""

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
from ppf.llm.loading import dtype_name, place_of_layers, resolve_dtype
from ppf.llm.shapes import skeleton
from ppf.llm.sources import missing_bytes
from ppf.predictor.base import drawn_labels, unfitted
from ppf.processes import processes_here
from ppf.progress import say
from ppf.pruning.bank import factors_gib, levels_gib
from ppf.pruning.signatures import signatures
from ppf.ranks import on_rank_0
from ppf.report.numbers import duration
from ppf.report.tables import Table, print_table

GIB = 2**30
_TIMED = 0.2  # seconds of each timing
_REMEDIES = {
    "memory": "lower bank.max_gib or text.windows, or give model.offload=disk",
    "disk": "give another disk's folder with paths.artefacts=FOLDER",
}


class Need(NamedTuple):
    """What a stage needs, in seconds of one process and GiB of one GPU or of all processes."""

    stage: str
    seconds: float
    memory: float
    disk: float


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
        layer = _seconds("decoder(ids, use_cache=False)", decoder=decoder, ids=ids)
        return cls(layer / ids.numel(), _seconds("x @ x", x=square) / (2 * len(square) ** 3))


class Plan:
    """What a config needs; `benchmarks/plans.py` compares it with runs.

    Args:
        cfg: with model, text, space, compensation, labels and bank; of a search also its sections.
        device: of one process.
        dtype: in which the weights are loaded again, after `model.dtype`; None: they are not.

    Attributes:
        parameters: of the model.
        weights, left: GiB of all of them, and of those that the (mean) ratio leaves.
        labels: largest number of policies that are measured.
        mixture: whether experts can be removed.

    Raises:
        PPFError: the structure of the model is not known without its weights.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, dtype: str | None = None) -> None:
        self.cfg, self.device = cfg, device
        self._model, self._adapter = skeleton(cfg.model)
        dtypes = (resolve_dtype(x, device) for x in (cfg.model.dtype, dtype or cfg.model.dtype))
        self.dtype = max(dtypes, key=lambda each: each.itemsize)
        self._gib = self.dtype.itemsize / GIB  # of one number
        ratios = [*cfg.get("ratios", [cfg.get("ratio", 0.0)])]
        self._ratio = sum(ratios) / len(ratios)
        kinds = {coupling.kind for coupling in self._adapter.couplings(self._model)}
        self.mixture = "experts" in kinds and "mlp" in cfg.space.kinds
        self._layers = self._adapter.layers(self._model)
        self._in_layers = parameters(self._layers)
        self.parameters = parameters(self._model)
        self.weights = self.parameters * self._gib
        self.left = self.weights - self._ratio * self._in_layers * self._gib
        self.labels = drawn_labels(cfg) + cfg.get("test_policies", 0)
        self._searches = isinstance(cfg.get("search"), DictConfig)  # elsewhere it names a folder
        if self._searches:
            rules, reported = len(set(cfg.rules) - {"uniform"}), len(cfg.get("ratios", []))
            self.labels += instantiate(cfg.search).evaluations(rules, reported)

    def needs(self, speed: Speed | None = None, processes: int = 1) -> list[Need]:
        """The needs of each stage, in order.

        Args:
            speed: of this machine; None: no stage takes time.
            processes: on this machine.
        """
        cfg, on_cpu, depth = self.cfg, self.device.type == "cpu", len(self._layers)
        layer, product = speed or (0.0, 0.0)
        parts = (cfg.text.windows[part] for part in ("calibration", "labelling", "test"))
        window = int(cfg.text.window)
        calibration, labelling, test = (window * int(part or 1024) for part in parts)  # null: all
        couplings = self._adapter.couplings(self._model)
        shapes = {c.name: (c.consumer.out_features, c.consumer.in_features) for c in couplings}
        squares, cubes = (sum(n**power for _, n in shapes.values()) for power in (2, 3))

        # Seconds of a token in the dense model, in a pruned one, and for its gradients.
        head = 0.7 * self._model.get_output_embeddings().weight.numel() / self._in_layers
        dense, pruned = (depth * layer * (x + head) for x in (1, 1 - self._ratio))
        gradient = 2.4 * dense + 0.6 * squares * product
        # Operations for moments; for order and bank; for spectra and traits.
        operations = 1.2 * calibration * squares + 6.5 * cubes + 2e4 * self._in_layers
        preparing = 1.25 * calibration * depth * layer + operations * product

        factors = levels = 0.0  # GiB of the bank's files, and of its levels in memory
        if instantiate(cfg.compensation).refits:
            space = instantiate(cfg.space, [c.prunable for c in couplings])
            sites = [shapes[site.name] for site in space.sites]
            factors = factors_gib(sites, self.dtype)
            levels = min(cfg.bank.max_gib, levels_gib(sites, space, self.dtype))
            levels = max(levels, sum(rows * n for rows, n in sites) * self._gib)  # one policy's
        if cfg.get("budget", {}).get("name") == "bytes":  # a policy's quantised weights
            levels = max(levels, self._in_layers * self._gib)
        state = self._model.config.hidden_size * self._gib  # GiB of a token between layers
        states = (depth + 1) * state * (labelling + (calibration / 4 if on_cpu else 0))
        solving = 2.5 * calibration * state + max(solving_gib(*shape) for shape in shapes.values())
        measuring = levels + states
        rows = [
            ("download", 0.0, 0.0, missing_bytes(cfg.model, cfg.paths.cache) / GIB),
            ("preparing the model", preparing, solving, 4 * squares / GIB + factors),
            ("labels", self.labels * labelling * pruned, measuring, 0.0),
        ]
        if self._searches:
            predictor, again = unfitted(cfg.predictor), cfg.search.get("rounds", 1) > 1
            sets = self.labels // getattr(predictor, "renewal", 1) if again else 0
            tokens = calibration / 4 + sets * getattr(predictor, "windows", 0) * window
            one = activations(self._layers, window, self.dtype)  # bytes of a window
            kept = min(SMALL // one, calibration // window // 4) * one or one / depth
            selection = cfg.search.get("selection_windows", 0) * window
            rows += [
                ("gradients, predictor, agent", tokens * gradient, measuring + kept / GIB, 0.0),
                ("selection part", 4 * selection * pruned, measuring, 0.0),
                ("test part", cfg.report_test * test * (dense + 8 * pruned), measuring, 0.0),
            ]

        common = self.weights + (0.7 if on_cpu else 0)  # with Python, PyTorch and transformers
        if place_of_layers(cfg.model, self.device):
            common -= self._in_layers * self._gib * (1 - 1 / depth)
        gpus = torch.cuda.device_count() if cfg.model.get("device_map") and not on_cpu else 1
        times = processes if on_cpu else 1 / gpus
        return [Need(name, time, times * (common + own), disk) for name, time, own, disk in rows]


def solving_gib(rows: int, columns: int) -> float:
    """GiB of the matrices, most of them in float64, that refit a weight of this shape."""
    return 8 * (5 * columns**2 + 4 * rows * columns) / GIB


def check_capacity(cfg: DictConfig, fabric: Fabric, dtype: str | None = None) -> None:
    """Compares a config with this machine before any work starts, on rank 0 for all.

    Args:
        cfg, dtype: as for `Plan`.

    Raises:
        PPFError: memory or disk do not suffice.
    """

    def compare() -> str | None:
        with suppress(PPFError):  # the model's structure is not known without its weights
            needs = Plan(cfg, fabric.device, dtype).needs(processes=processes_here(fabric))
            return _fault(needs, _free(cfg, fabric.device))
        return None

    if fault := on_rank_0(fabric, compare):
        raise PPFError(f"model={cfg.model.name}: {fault}")


def show(cfg: DictConfig) -> None:
    """Prints time, memory and disk of each stage, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    device = fabric.device
    plan, free, speed = Plan(cfg, device), _free(cfg, device), Speed.measured(cfg, device)
    needs = plan.needs(speed, processes_here(fabric))
    say(
        f"Plan for model={cfg.model.name}: {plan.parameters / 1e9:.2f} billion parameters,"
        f" {plan.weights:.1f} GiB in {dtype_name(plan.dtype)} on the {device.type}; the result has"
        f" about {plan.left:.1f} GiB. Times are those of one process with {plan.labels} labels at"
        f" the present speed: {1e3 * speed.layer:.3g} ms for a token in a decoder layer,"
        f" {1e-9 / speed.product:.0f} GFLOP/s in a large product in float32."
        + " Fewer experts are fewer parameters only: a token computes as much."
        * plan.mixture
    )
    told = [need for need in needs if need.seconds or need.disk]
    whole = sum(need.seconds for need in needs), *_sums(needs)
    rows = [*told, ("whole run", *whole), ("free", None, *free)]
    names = ("stage", "time", "memory, GiB", "disk, GiB")
    shown = [dict(zip(names, row, strict=True)) for row in rows]
    print_table(Table(shown, {"time": duration} | dict.fromkeys(names[2:], "{:.1f}".format)))
    fault = _fault(needs, free)
    say(f"It does not fit: {fault}" if fault else "It fits.")


def _sums(needs: list[Need]) -> tuple[float, float]:
    """GiB of memory and disk that a whole run needs."""
    return max(need.memory for need in needs), sum(need.disk for need in needs)


def _fault(needs: list[Need], free: tuple[float, float]) -> str | None:
    """What does not fit into what `_free` returns; None: all fits."""
    for name, needed, left in zip(_REMEDIES, _sums(needs), free, strict=True):
        if needed > left:
            sizes = f"{needed:.1f} GiB of {name}, but {left:.1f} GiB are free"
            return f"it needs {sizes}: {_REMEDIES[name]}."
    return None


def _free(cfg: DictConfig, device: torch.device) -> tuple[float, float]:
    """GiB of free memory and disk; statistics and banks that this config has made count as free."""
    on_cpu, artefacts = device.type == "cpu", Path(cfg.paths.artefacts)
    system = psutil.virtual_memory().available
    memory = min(system, left_by_groups()) if on_cpu else torch.cuda.mem_get_info(device)[0]
    there = next(x for x in (artefacts, *artefacts.absolute().parents) if x.exists())
    disk = shutil.disk_usage(there).free
    if (artefacts / "statistics").is_dir():  # signatures may have to read the model's files
        names = signatures(cfg, device)
        patterns = f"statistics/{names.statistics}*/*", f"bank/{names.bank}/*/*"
        disk += sum(file.stat().st_size for x in patterns for file in artefacts.glob(x))
    return memory / GIB, disk / GIB


def left_by_groups(membership: str = "/proc/self/cgroup", top: str = "/sys/fs/cgroup") -> float:
    """Bytes that the Linux control groups of this process, as of a Slurm job, leave it.

    Args:
        membership: the file that names its group. Groups above it may have lower limits.
        top: folder of all groups.
    """
    left = [math.inf]
    with suppress(OSError):
        name = Path(membership).read_text(encoding="utf-8").rpartition("::/")[2].strip()
        for group in (Path(top, name), *Path(top, name).parents):
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limit, used = (int((group / f"memory.{x}").read_text()) for x in ("max", "current"))
                stat = (group / "memory.stat").read_text()
                cache = dict(line.split() for line in stat.splitlines())["inactive_file"]
                left.append(limit - used + int(cache))  # page cache not used lately is free
    return max(min(left), 0)


def _seconds(code: str, **given: Any) -> float:
    timer = Timer(code, globals=given, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=_TIMED).times)
