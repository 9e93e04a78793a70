"""The files of a multirun: rows, the table, a plot, and a page with both."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ppf.artefacts import draft, write_json
from ppf.commands import invocation
from ppf.errors import PPFError
from ppf.overrides import quoted
from ppf.progress import warning
from ppf.records.run import RUN
from ppf.report.agreement import agreement
from ppf.report.headline import even_pruning
from ppf.report.html import write_page
from ppf.report.origin import machine, next_command
from ppf.report.page import Page, ReportSection, Tile
from ppf.report.scores import duration, percent
from ppf.report.style import save_png
from ppf.report.sweep import (
    REPEATED,
    Group,
    Sweep,
    multirun,
    read_job,
    read_rows,
    read_sweep,
    sweep_table,
    words,
)
from ppf.report.sweep_plots import BASELINES, SIZE, sweep_figure
from ppf.report.tables import print_table

_NOTHING = "Finished jobs: {}. None of them reports a number to compare."


def write_sweep(folder: Path) -> dict[str, Path]:
    """Writes results.json, results.md, results.png and report.html, and prints the table.

    Returns:
        The files, by their purpose.

    Raises:
        PPFError: as for `read_sweep`, or the folder is that of one run, which has its own report.
    """
    if (folder / RUN).is_file():
        raise PPFError(f"{folder} has the results of one run: give a folder of several runs.")
    sweep = read_sweep(folder)
    names = {"rows": "results.json", "table": "results.md", "plot": "results.png"}
    paths = {purpose: folder / name for purpose, name in names.items()}
    paths["report"] = folder / "report.html"
    page = sweep_page(sweep, folder)
    content = {key: value for key, value in vars(sweep).items() if key != "commands"}
    write_json(paths["rows"], content)
    with draft(paths["table"]) as made:
        made.write_text(page.tables["jobs"].shown.markdown, encoding="utf-8")
    save_png(page.figures["sweep"], paths["plot"])
    write_page(paths["report"], page)
    print_table(page.tables["jobs"])
    if len(sweep.versions) > 1:
        warning(f"these jobs are from several versions: {'; '.join(sweep.versions)}.")
    return paths


def plot_rows(file: Path, names: Mapping[str, str]) -> Path:
    """Draws the rows of a results.json, as results.png beside it.

    Args:
        names: names of the lines to draw, and what to call them; empty: all lines.

    Raises:
        PPFError: the file is damaged, or there is no line of a name.
    """
    sweep, path = read_rows(file), file.with_suffix(".png")
    save_png(sweep_figure(sweep.with_numbers, sweep.figures[0], names), path)
    return path


def sweep_page(sweep: Sweep, folder: Path) -> Page:
    """The page of a multirun."""
    again = shlex.join(["python", "-m", "ppf.report", "sweep", str(folder)])
    first = sweep.figures[0]
    command, overrides = multirun(folder) or ("", [])
    found = sweep.with_numbers
    best, figure = _best(found, first), sweep_figure(found, first)
    seconds = sum({row["job"]: row["seconds"] for row in sweep.rows}.values())
    note = "Means over seeds ± half their range, best first; intervals in brackets."
    return Page(
        title=f"{sweep.jobs} jobs of {' and '.join(sweep.commands)}",
        command=invocation(command, "-m", *overrides) if command else again,
        headline=[*(_headline(best, first) or [_NOTHING.format(sweep.jobs)]), *_orders(sweep)],
        tiles=[Tile("jobs", str(sweep.jobs), f"{duration(seconds)} one after another")],
        sections=[
            ReportSection("Results", note, name="sweep", figure=figure, wide=True),
            ReportSection("All jobs", note, name="jobs", table=sweep_table(sweep), wide=True),
            ReportSection("Machine", "That made this page.", facts=machine()),
        ],
        next_commands={
            **_next_commands(best, first, folder),
            "Make this page again, with the jobs that have finished since": again,
        },
    )


def _best(found: Sequence[Group], first: str) -> dict[object, list[Group]]:
    """The best groups of each ratio; several if they are equal."""
    best: dict[object, list[Group]] = {}
    for group in found:
        groups = best.setdefault(group.key.get("ratio"), [])
        if not groups or group.mean(first) == groups[0].mean(first):
            groups.append(group)
    return best


def _headline(best: Mapping[object, Sequence[Group]], first: str) -> list[str]:
    """The best groups of each ratio, compared with uniform pruning and the best rule."""
    sentences = []
    for ratio, groups in best.items():
        who = " and ".join(group.name for group in groups)
        equal = ", equally good," if len(groups) > 1 else ""
        start = f"Best{_at(ratio)}: {who}{equal} with" if who else f"Found{_at(ratio)}:"
        found = _named(first, groups[0].text(first))
        sentences.append(f"{start} {found}{_compared(groups[0], first)}.")
    return sentences


def _at(ratio: object) -> str:
    return f" at ratio {percent(ratio)}" if isinstance(ratio, float) else ""


def _named(figure: str, text: str) -> str:
    """For example "a perplexity of 29.00 on the test part"."""
    part, ending, _ = figure.partition("_ppl")
    return f"a perplexity of {text} on the {part} part" if ending else f"{words(figure)} {text}"


def _compared(group: Group, first: str) -> str:
    """For example ", better than uniform pruning (31.20)", as far as the baselines are known."""
    names = BASELINES | {"uniform": even_pruning(bool(group.values(SIZE)))}
    said, own = [], group.mean(first)
    for prefix, name in names.items():
        other = group.mean(f"{prefix}_{first}")
        if own is None or other is None:
            continue
        verdict = "equal to" if other == own else f"{'better' if own < other else 'worse'} than"
        said.append(f"{verdict} {name} ({group.text(f'{prefix}_{first}')})")
    return f", {' and '.join(said)}" if said else ""


def _next_commands(
    best: Mapping[object, Sequence[Group]], first: str, folder: Path
) -> dict[str, str]:
    """What to do with the policy of the best job of each ratio."""
    found = {}
    for ratio, groups in best.items():
        rows = [row for row in groups[0].rows if isinstance(row.get(first), int | float)]
        job = folder / min(rows, key=lambda row: row[first])["job"]
        if (file := job / "policy.json").is_file():
            found[f"Measure the best policy{_at(ratio)} on the test part"] = next_command(
                "evaluate", f"policy={quoted(file)}", overrides=read_job(job / RUN)["overrides"]
            )
    return found


def _orders(sweep: Sweep) -> Iterator[str]:
    """For recoveries of many policies: whether training changes their order."""
    one_training = {*sweep.axes} <= {"policy", "path", "ratio", "model", REPEATED}
    if one_training and (compared := agreement(sweep.rows)):
        yield str(compared)
