"""`plan=true`: prints what a command will need on this machine, and starts nothing."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.context.plan import Free, Need, Sizes, level_flops, measured_speeds, needs
from ppf.llm.loading import resolve_dtype
from ppf.progress import say
from ppf.report.scores import duration
from ppf.report.tables import Column, Table, print_table


def show_plan(cfg: DictConfig) -> None:
    """Prints memory, disk and time of each stage, and what is free.

    Raises:
        PPFError: the structure of the model is not known without its weights.
    """
    device = instantiate(cfg.fabric).device
    dtype = resolve_dtype(cfg.model.dtype, device)
    sizes, free = Sizes.of(cfg, device), Free.on(device, Path(cfg.paths.artefacts))
    speeds = measured_speeds(dtype, device)
    found = needs(sizes, speeds)
    say(
        f"Plan for model={cfg.model.name}: {sizes.parameters / 1e9:.2f} billion parameters,"
        f" {sizes.weights:.1f} GiB in {str(dtype).removeprefix('torch.')} on the {device.type}."
    )
    print_table(_table(found, free))
    if sizes.bank and sizes.bank.factored:
        place = "in memory" if sizes.bank.resident else "in files"
        share = level_flops(sizes) / speeds.model * sizes.labels / found[-1].seconds
        say(
            f"The level bank is {sizes.bank.gib:.1f} GiB of factors {place}; computing its levels"
            f" takes {share:.0%} of the time of a label."
        )
    say("Agents and predictors take minutes at any size. Several processes divide the work.")


def _table(found: list[Need], free: Free) -> Table:
    columns = [
        Column("stage"),
        Column("memory, GiB", "{:.1f}".format),
        Column("host memory, GiB", "{:.1f}".format),
        Column("disk, GiB", "{:.1f}".format),
        Column("time", duration),
    ]
    rows: list[list[str | float | None]] = [
        [need.stage, need.memory, need.host, need.disk, need.seconds] for need in found
    ]
    return Table(columns, [*rows, ["free here", free.memory, free.host, free.disk, None]])
