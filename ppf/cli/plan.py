"""`plan=true`: prints what a command will need on this machine, and starts nothing."""

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.llm.divide import check_division
from ppf.llm.loading import resolve_dtype
from ppf.planning.capacity import Comparison, refusal
from ppf.planning.evaluations import evaluations_of_agent
from ppf.planning.plan import Need, level_flops, measured_speeds
from ppf.processes import processes_here
from ppf.progress import say
from ppf.report.scores import duration
from ppf.report.tables import Cell, Table, print_table


def show_plan(cfg: DictConfig) -> None:
    """Prints memory, disk and time of each stage, what is free, and whether it suffices.

    Raises:
        PPFError: the structure of the model is not known without its weights, or its layers cannot
            be divided as the config asks.
    """
    fabric = instantiate(cfg.fabric)
    device, processes = fabric.device, processes_here(fabric)
    check_division(cfg.model, device, fabric.world_size)
    dtype = resolve_dtype(cfg.model.dtype, device)
    speeds = measured_speeds(dtype, device)
    found = Comparison.of(cfg, device, processes, speeds)
    sizes = found.sizes
    say(
        f"Plan for model={cfg.model.name}: {sizes.parameters / 1e9:.2f} billion parameters,"
        f" {sizes.weights:.1f} GiB in {str(dtype).removeprefix('torch.')} on the {device.type}."
        f" Memory and disk are those of {processes} process{'es' * (processes > 1)} on a machine."
    )
    print_table(_table(found))
    if sizes.bank and sizes.bank.factored:
        place = "in memory" if sizes.bank.resident else "in files"
        labels = next(need for need in found.needs if need.stage == f"{sizes.labels} labels")
        share = level_flops(sizes) / speeds.model * sizes.labels / labels.seconds
        say(
            f"The level bank is stored as matrix factors ({sizes.bank.gib:.1f} GiB, {place})."
            f" Multiplying them takes {share:.0%} of the time of a label."
        )
    say(
        "Times are for one process that does all of the work. Several processes share it, except"
        " expected losses and gradients. Agents and predictors add some minutes for any model."
        " Measurements on the selection and test parts are not counted."
    )
    if evaluations_of_agent(cfg) == 0:
        say("The agent measures policies too, and their number is not known in advance.")
    sentence = refusal(cfg, device, found)
    say(f"It does not fit: {sentence}" if sentence else "It fits.")


def _table(found: Comparison) -> Table:
    """A row for each stage, for existing files, for the whole run, and for what is free."""
    cpu, free, elsewhere = found.sizes.on_cpu, found.free, found.free.cache is not None
    memory = "memory, GiB" if cpu else "host memory, GiB"
    names = ("memory of each GPU, GiB", memory, "disk, GiB", "paths.cache, GiB")

    def row(name: str, needs: Sequence[Need], written: float) -> dict[str, Cell]:
        """The peaks and sums of some stages."""
        offloaded = sum(need.offloaded for need in needs)
        memory = None if cpu else max(need.memory for need in needs)
        cache = offloaded if elsewhere and found.offloaded else None
        sizes = memory, max(need.host for need in needs), written, cache
        return cells(name, *sizes) | {"time": sum(need.seconds for need in needs)}

    def cells(name: str, *sizes: float | None) -> dict[str, Cell]:
        return {"stage": name, **dict(zip(names, sizes, strict=True)), "time": None}

    def disk(need: Need) -> float:
        return need.disk + (0.0 if elsewhere else need.offloaded)

    rows = [row(need.stage, [need], disk(need)) for need in found.needs]
    if found.made:
        rows.append(cells("files that exist", None, None, -found.made, None))
    rows.append(row("whole run", found.needs, found.disk))
    cache = free.cache if found.offloaded else None
    rows.append(cells("free here", None if cpu else free.memory, free.host, free.disk, cache))
    return Table(rows, dict.fromkeys(names, "{:.1f}".format) | {"time": duration})
