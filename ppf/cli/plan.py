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
from ppf.report.tables import Cell, Column, Table, print_table


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
    columns = [
        Column("stage"),
        Column("memory of each GPU, GiB", "{:.1f}".format),
        Column("memory, GiB" if cpu else "host memory, GiB", "{:.1f}".format),
        Column("disk, GiB", "{:.1f}".format),
        Column("paths.cache, GiB", "{:.1f}".format),
        Column("time", duration),
    ]

    def row(name: str, needs: Sequence[Need], written: float) -> list[Cell]:
        """The peaks and sums of some stages."""
        offloaded = sum(need.offloaded for need in needs)
        memory = None if cpu else max(need.memory for need in needs)
        cache = offloaded if elsewhere and found.offloaded else None
        host, seconds = max(need.host for need in needs), sum(need.seconds for need in needs)
        return [name, memory, host, written, cache, seconds]

    def disk(need: Need) -> float:
        return need.disk + (0.0 if elsewhere else need.offloaded)

    rows = [row(need.stage, [need], disk(need)) for need in found.needs]
    if found.made:
        rows.append(["files that exist", None, None, -found.made, None, None])
    rows.append(row("whole run", found.needs, found.disk))
    cache = free.cache if found.offloaded else None
    rows.append(["free here", None if cpu else free.memory, free.host, free.disk, cache, None])
    return Table(columns, rows).without_empty_columns()
