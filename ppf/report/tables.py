"""Console tables at the end of a search or a training."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ppf.progress import console
from ppf.report.scores import Entry, LogPerplexity, decimal, duration, percent


def print_summary(
    entries: Sequence[Entry],
    seconds: Mapping[str, float],
    paths: Mapping[str, str | Path],
    *,
    target: Console = console,
) -> None:
    """Prints the perplexities, the duration of each stage, and the paths of the files.

    If the output is not a terminal, no line is cut or wrapped, so that programs can read it.

    Args:
        entries: policies; each of their log-perplexities gets a row.
        seconds: duration of each stage.
        paths: written files, by their purpose.
    """
    print_table(target, _scores(entries))
    print_table(target, _times(seconds))
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        target.print(f"{name:<{width}}  {path}", markup=False, highlight=False, soft_wrap=True)


def _scores(entries: Sequence[Entry]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy")
    for name in ("ratio", "perplexity"):
        table.add_column(name, justify="right")
    table.add_column("source")
    for name in ("95 % interval", "nats per token"):
        table.add_column(name, justify="right")
    for entry in entries:
        for score in entry.scores:
            style = "bold" if score is entry.measured else "dim"
            table.add_row(entry.policy, percent(entry.ratio), *_cells(score), style=style)
    return table


def _cells(score: LogPerplexity) -> tuple[str, ...]:
    interval = " – ".join(map(decimal, score.interval or ()))
    return decimal(score.perplexity), score.known, interval, f"{score.nll:.4f}"


def _times(seconds: Mapping[str, float]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("stage", footer="total")
    table.add_column("time", footer=duration(sum(seconds.values())), justify="right")
    for stage, spent in seconds.items():
        table.add_row(stage, duration(spent))
    return table


def print_table(target: Console, table: Table) -> None:
    """Prints a table; at its full width if the output is not a terminal."""
    if not target.is_terminal:
        roomy = target.options.update(max_width=10_000)
        table.width = Measurement.get(target, roomy, table).maximum
    target.print(table, crop=target.is_terminal)


def print_scores(
    metrics: Mapping[str, float], bands: Sequence[float], *, target: Console = console
) -> None:
    """Prints a predictor's metrics on held-out policies, over all ratios and for each band.

    Args:
        metrics: as the predictor logs them, with keys like "test/mae" and "test/mae_15_30".
        bands: edges of the bands, ascending pruning ratios.
    """
    edges = [f"{low * 100:.0f}_{high * 100:.0f}" for low, high in pairwise(bands)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("held-out policies")
    for heading in ["all", *(f"{edge.replace('_', '–')} %" for edge in edges)]:
        table.add_column(heading, justify="right")
    for name, words in _SCORES.items():
        keys = [f"test/{name}", *(f"test/{name}_{edge}" for edge in edges)]
        cells = [f"{metrics[key]:.4f}" if key in metrics else "too few" for key in keys]
        table.add_row(words, *cells)
    print_table(target, table)


_SCORES = {
    "mae": "mean absolute error, nats",
    "median": "median absolute error, nats",
    "nmse": "normalised MSE",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "coverage": "coverage of the 90 % interval",
    "regret": "regret of the best predicted policy, nats",
}
