"""Memory, disk and time that a config needs on this machine, from the model's config alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from ppf.evaluation.size import parameters
from ppf.llm.backward import SMALL, activations
from ppf.llm.loading import place_of_layers, resolve_dtype
from ppf.llm.shapes import skeleton
from ppf.planning.evaluations import MANY, counts_bytes, evaluations, gradient_sets, reestimates
from ppf.pruning.bank import BankSize, bank_size
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.observed import reads_spectra
from ppf.space import Space

GIB = 2**30
_EFFICIENCY = 0.5  # of a model's layers, relative to the speed of one large product
_LEVEL = 0.28  # cost of a level from its factors, relative to a product with all columns
_PROCESS = 0.7  # GiB that Python, PyTorch and transformers take


@dataclass(frozen=True)
class Need:
    """The needs of one stage on a machine.

    Args:
        stage: its name.
        memory: GiB at its peak, on the device of one process. If that is the CPU, equal to `host`.
        host: GiB of the host's memory at its peak, for all processes on the machine.
        disk: GiB that it writes to `paths.artefacts`.
        seconds: its duration if one process does all of it.
        offloaded: GiB in `paths.cache`, of weights that all processes on the machine put there.
    """

    stage: str
    memory: float
    host: float
    disk: float
    seconds: float
    offloaded: float = 0.0


@dataclass(frozen=True)
class Speeds:
    """Floating-point operations a second of a large matrix product, in three number formats."""

    model: float
    single: float
    double: float


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, a bank and a text.

    Args:
        parameters: number of the model's parameters.
        in_layers: number of them in the decoder layers.
        layers: number of decoder layers.
        hidden: width of the hidden states.
        consumers: (outputs, inputs) of each consumer.
        head: number of weights of the language-model head.
        bank: of least squares; None: no weights are refitted.
        itemsize: bytes of a weight.
        activations: bytes that the backward pass of a window needs.
        calibration: tokens.
        labelling: tokens.
        labels: largest number of policies that are labelled or measured. Policies that a search on
            the real model measures on fewer windows count as a share of one.
        gradients: tokens of one set of windows for gradients of the best policies.
        sets: largest number of these sets; 0: the search takes no gradients.
        copied: largest number of weights that a policy has copies of, compensated or rounded.
        refitting: tokens for sequential re-estimation; 0: there is none.
        spectra: whether an allocation rule reads the spectra of weights.
        offload: as `model.offload`.
        devices: number of devices that the layers of a process are divided over.
        processes: number of processes on the machine.
        on_cpu: whether the device is the CPU, so that its memory is the host's.
    """

    parameters: int
    in_layers: int
    layers: int
    hidden: int
    consumers: list[tuple[int, int]]
    head: int
    bank: BankSize | None
    itemsize: int
    activations: int
    calibration: int
    labelling: int
    labels: int
    gradients: int
    sets: int
    copied: int
    refitting: int
    spectra: bool
    offload: str | None
    devices: int
    processes: int
    on_cpu: bool

    @classmethod
    def of(
        cls, cfg: DictConfig, device: torch.device, processes: int = 1, dtype: str | None = None
    ) -> "Sizes":
        """The sizes of a config with model, text, space, compensation, labels and bank.

        Args:
            cfg: the config.
            device: of one process.
            processes: number of processes on the machine.
            dtype: in which the weights are loaded again, after `model.dtype`; None: they are not.

        Raises:
            PPFError: the structure of the model is not known without its weights.
        """
        model, adapter = skeleton(cfg.model)
        couplings = adapter.couplings(model)
        dtypes = [resolve_dtype(name, device) for name in (cfg.model.dtype, dtype) if name]
        widest = max(dtypes, key=lambda each: each.itemsize)
        space: Space = instantiate(cfg.space, [coupling.prunable for coupling in couplings])
        shapes = {c.name: (c.consumer.out_features, c.consumer.in_features) for c in couplings}
        of_sites = [shapes[site.name] for site in space.sites]
        compensation = instantiate(cfg.compensation)
        gpus = [device]
        if cfg.model.get("device_map") and device.type == "cuda":
            gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        layers, windows = adapter.layers(model), cfg.text.windows
        place = place_of_layers(cfg.model, device)
        banked = of_sites, space, dtypes[-1]
        loaded = parameters(model) - (parameters(layers) if place else 0)
        loading = loaded * widest.itemsize / GIB
        bank = bank_size(*banked, cfg.bank.max_gib, gpus, loading) if compensation.refits else None
        in_set, sets = gradient_sets(cfg)
        refitted = sum(rows * columns for rows, columns in shapes.values())
        names = {site.name for site in space.sites}
        rounded = sum(x.weight.numel() for c in couplings if c.name in names for x in c.linears)
        in_bytes = "budget" in cfg and counts_bytes(cfg.budget)
        can_refit = adapter.adds_to_stream(model.config) and not isinstance(
            compensation, NoCompensation
        )
        refit_windows = cfg.get("refit_windows") or MANY
        return cls(
            parameters=parameters(model),
            in_layers=parameters(layers),
            layers=len(layers),
            hidden=model.config.hidden_size,
            consumers=list(shapes.values()),
            head=model.get_output_embeddings().weight.numel(),
            bank=bank,
            itemsize=widest.itemsize,
            activations=activations(layers, cfg.text.window, widest),
            calibration=(windows.calibration or MANY) * cfg.text.window,
            labelling=(windows.labelling or MANY) * cfg.text.window,
            labels=evaluations(cfg),
            gradients=in_set * cfg.text.window,
            sets=sets,
            copied=rounded if in_bytes else refitted if bank and bank.factored else 0,
            refitting=refit_windows * cfg.text.window if can_refit and reestimates(cfg) else 0,
            spectra=reads_spectra(cfg),
            offload=place,
            devices=len(gpus),
            processes=processes,
            on_cpu=device.type == "cpu",
        )

    @property
    def weights(self) -> float:
        """GiB of all weights."""
        return self.parameters * self.itemsize / GIB

    @property
    def resident(self) -> float:
        """GiB of the weights that are on one device at once."""
        parts = self.layers if self.offload else self.devices
        others = self.parameters - self.in_layers
        return (others + self.in_layers / parts) * self.itemsize / GIB

    @property
    def bank_in_memory(self) -> float:
        """GiB of the bank's weights that stay in the memory of one device."""
        return self.bank.gib / self.devices if self.bank and self.bank.resident else 0.0

    def states(self, tokens: int) -> float:
        """GiB of hidden states in front of one layer."""
        return tokens * self.hidden * self.itemsize / GIB


def needs(sizes: Sizes, speeds: Speeds) -> list[Need]:
    """The needs of the stages that grow with the model, which are those up to the labels.

    Agents and predictors do not use the model, so they take minutes at any size.

    Args:
        sizes: of model, bank and text.
        speeds: of the device.
    """
    forward = 2 * sizes.in_layers / (speeds.model * _EFFICIENCY)  # seconds for a token
    head = 2 * sizes.head / (speeds.model * _EFFICIENCY)
    found = [
        _observing(sizes, speeds, forward),
        _building(sizes, speeds),
        _differentiating("expected losses", sizes.calibration // 4, sizes, speeds, forward, head),
    ]
    if sizes.sets:
        stage = "gradients of the best policies"
        need = _differentiating(stage, sizes.gradients, sizes, speeds, forward, head)
        found.append(replace(need, seconds=sizes.sets * need.seconds))
    labelling = _labelling(sizes, speeds, forward, head)
    return [*found, labelling, *([_refitting(sizes, labelling)] if sizes.refitting else [])]


def _observing(sizes: Sizes, speeds: Speeds, forward: float) -> Need:
    """Moments, order (as `importance=obs` finds it) and traits."""
    tokens, stride = sizes.calibration, 1.25  # every fourth window is run again for the traits
    squares = sum(columns**2 for _, columns in sizes.consumers)
    order = sum(2 * columns**3 + rows * columns**2 for rows, columns in sizes.consumers)
    spectra = sum(3.5 * min(s) ** 2 * (2 * max(s) + 4 * min(s)) for s in sizes.consumers)
    spectra *= sizes.spectra
    seconds = tokens * (stride * forward + 2 * squares / speeds.single)
    seconds += (order + spectra) / speeds.double
    offloaded = sizes.in_layers * sizes.itemsize / GIB if sizes.offload == "disk" else 0.0
    memory = sizes.resident + 2 * stride * sizes.states(tokens) + solving(sizes.consumers)
    need = _need("observing the dense model", sizes, memory, 4 * squares / GIB, seconds)
    return replace(need, offloaded=sizes.processes * offloaded)


def _building(sizes: Sizes, speeds: Speeds) -> Need:
    if not sizes.bank:
        return _need("building the bank", sizes, sizes.resident, 0, 0)
    products = sum(4 / 3 * n**3 + 4 * rows * n**2 for rows, n in sizes.consumers)
    bank, matrices = sizes.bank_in_memory, solving(sizes.consumers)
    # Factors are read after the last site is solved (`Bank.build`).
    memory = sizes.resident + (max(bank, matrices) if sizes.bank.factored else bank + matrices)
    seconds = products / speeds.double
    return _need("building the bank", sizes, memory, sizes.bank.disk, seconds)


def _differentiating(
    stage: str, tokens: int, sizes: Sizes, speeds: Speeds, forward: float, head: float
) -> Need:
    """Gradients of the loss on some tokens; states lie in host memory."""
    along = 2 * sum(columns * (rows + columns) for rows, columns in sizes.consumers)
    small = sizes.activations <= SMALL and not sizes.offload
    passes = 2 if small else 3  # a large model runs each layer again
    seconds = tokens * (passes * forward + 2 * head + along / speeds.model)
    states = (sizes.layers + 1) * sizes.states(tokens)
    kept = sizes.activations / (1 if small else sizes.layers) / GIB
    memory = sizes.resident + sizes.bank_in_memory + kept
    return _need(stage, sizes, memory, 0, seconds, states)


def _labelling(sizes: Sizes, speeds: Speeds, forward: float, head: float) -> Need:
    states = (sizes.layers + 1) * sizes.states(sizes.labelling)
    memory = sizes.resident + sizes.bank_in_memory + states
    copied = sizes.copied * sizes.itemsize / GIB
    if not sizes.offload:
        memory += copied / sizes.devices
    seconds = sizes.labelling * (forward + head) + level_flops(sizes) / speeds.model
    host = sizes.processes * copied if sizes.offload else 0.0
    return _need(f"{sizes.labels} labels", sizes, memory, 0, sizes.labels * seconds, host)


def _refitting(sizes: Sizes, labelling: Need) -> Need:
    """Sequential re-estimation on rank 0, which still has the hidden states of the labels.

    As other work after the search, it does not count as time.
    """
    more = 5 * sizes.states(sizes.refitting) + solving(sizes.consumers)
    memory, host = labelling.memory + more, labelling.host + (more if sizes.on_cpu else 0.0)
    return Need("sequential re-estimation", memory, host, disk=0, seconds=0)


def level_flops(sizes: Sizes) -> float:
    """Floating-point operations that compute one level of every site from its factors."""
    if not (sizes.bank and sizes.bank.factored):
        return 0.0
    return 2 * _LEVEL * sum(rows * columns**2 for rows, columns in sizes.consumers)


def solving(consumers: list[tuple[int, int]]) -> float:
    """GiB of the matrices, most of them in float64, for the solution of the widest site.

    Args:
        consumers: as in `Sizes`.
    """
    return max(8 * (5 * n**2 + 4 * rows * n) for rows, n in consumers) / GIB


def _need(
    stage: str, sizes: Sizes, memory: float, disk: float, seconds: float, states: float = 0
) -> Need:
    """The need of all processes on the machine.

    Args:
        memory: GiB on the device of each process.
        states: further GiB in host memory on any device, for example hidden states of rank 0.
    """
    if sizes.on_cpu:
        memory = sizes.processes * (memory + _PROCESS) + states
        return Need(stage, memory, memory, disk, seconds)
    weights = sizes.resident if sizes.offload == "disk" else sizes.weights
    host = sizes.processes * (weights + _PROCESS) + states
    return Need(stage, memory, host, disk, seconds)


def measured_speeds(dtype: torch.dtype, device: torch.device) -> Speeds:
    """Times matrix products on the device; takes about a second."""

    def speed(kind: torch.dtype) -> float:
        side = 1024 if device.type == "cpu" else 8192
        matrix = torch.ones(side, side, dtype=kind, device=device)
        best = min(_seconds(lambda: matrix @ matrix, device) for _ in range(3))
        return 2 * side**3 / best

    return Speeds(*(speed(kind) for kind in (dtype, torch.float32, torch.float64)))


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
