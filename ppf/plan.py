"""Time, memory and disk that a command needs, from the model's config alone."""

from contextlib import suppress
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
from ppf.llm.sources import missing_bytes
from ppf.machine import GIB, Speed, free_gib
from ppf.predictor.base import drawn_labels, unfitted
from ppf.processes import processes_here
from ppf.progress import say
from ppf.pruning.bank import factors_gib, levels_gib, solving_gib
from ppf.ranks import on_rank_0
from ppf.report.numbers import duration
from ppf.report.tables import Table, print_table


class Need(NamedTuple):
    """What a stage needs, in seconds of one process and GiB of one GPU or of all processes."""

    stage: str
    seconds: float
    memory: float
    disk: float


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
        # Operations for moments; for order and bank; for spectra and features.
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
            return _fault(whole_run(needs), free_gib(cfg, fabric.device))
        return None

    if fault := on_rank_0(fabric, compare):
        raise PPFError(f"model={cfg.model.name}: {fault}")


def show(cfg: DictConfig) -> None:
    """Prints time, memory and disk of each stage, what is free, and whether it suffices."""
    fabric = instantiate(cfg.fabric)
    plan, speed = Plan(cfg, fabric.device), Speed.measured(cfg, fabric.device)
    needs, free = plan.needs(speed, processes_here(fabric)), free_gib(cfg, fabric.device)
    say(
        f"Plan for model={cfg.model.name}: {plan.parameters / 1e9:.2f} billion parameters,"
        f" {plan.weights:.1f} GiB in {dtype_name(plan.dtype)} on the {fabric.device.type}; the"
        f" result has about {plan.left:.1f} GiB. Times are those of one process with {plan.labels}"
        f" labels at the present speed: {1e3 * speed.layer:.3g} ms for a token in a decoder layer,"
        f" {1e-9 / speed.product:.0f} GFLOP/s in a large product in float32."
    )
    whole, names = whole_run(needs), ("stage", "time", "memory, GiB", "disk, GiB")
    rows = [*(x for x in needs if x.seconds or x.disk), whole, ("free", None, *free)]
    shown = [dict(zip(names, row, strict=True)) for row in rows]
    print_table(Table(shown, {"time": duration} | dict.fromkeys(names[2:], "{:.1f}".format)))
    fault = _fault(whole, free)
    say(f"It does not fit: {fault}" if fault else "It fits.")


def whole_run(needs: list[Need]) -> Need:
    """The sums of time and disk, and the largest memory."""
    _, seconds, memory, disk = zip(*needs, strict=True)
    return Need("whole run", sum(seconds), max(memory), sum(disk))


def _fault(need: Need, free: tuple[float, float]) -> str | None:
    """What does not fit into the GiB of free memory and disk; None: all fits."""
    memory, disk = free
    if need.memory > memory:
        remedy = "lower bank.max_gib or text.windows, or give model.offload=disk"
        return f"it needs {need.memory:.1f} GiB of memory, but {memory:.1f} GiB are free: {remedy}."
    if need.disk > disk:
        remedy = "give another disk's folder with paths.artefacts=FOLDER"
        return f"it needs {need.disk:.1f} GiB of disk, but {disk:.1f} GiB are free: {remedy}."
    return None
