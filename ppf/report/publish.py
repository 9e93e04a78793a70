"""Gives a run's results to the console, to report.html and to every logger."""

import json
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from ppf.progress import say
from ppf.report import evaluation, recovery, search
from ppf.report.page import Page, write_page
from ppf.report.style import png
from ppf.report.tables import print_table

_REPORTS: Any = {"evaluate": evaluation, "recover": recovery, "search": search}


def publish_file(file: Path, command: str, loggers: Sequence[Logger]) -> None:
    """Publishes what a command ("evaluate", "recover" or "search") has written in a JSON file."""
    found, report = json.loads(file.read_text(encoding="utf-8")), _REPORTS[command]
    publish(file.parent, loggers, report.page(found), flat(report.metrics(found)))


def flat(metrics: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The numbers in nested dictionaries by their path, as in "PPF/test/perplexity"."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}/")
        elif isinstance(value, int | float):
            found[above + name] = value
    return found


@rank_zero_only
def publish(
    folder: Path, loggers: Sequence[Logger], page: Page, metrics: Mapping[str, float]
) -> None:
    """Writes report.html, gives figures, tables and metrics to the loggers, and prints results.

    Args:
        folder: of the run.
        page: its tables before the first figure are printed.
        metrics: summary of the run, by name.
    """
    file = folder / "report.html"
    write_page(file, page)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            html = wandb.Html(file.read_text(encoding="utf-8"), inject=False)
            media: dict[str, Any] = {"report": html}
            for section in page.sections:
                if section.name and section.figure:
                    image = Image.open(BytesIO(png(section.figure)))
                    media[section.name] = wandb.Image(image)
            for name, table in page.tables.items():
                rows = [[row[column] for column in table.names] for row in table.rows]
                media[f"tables/{name}"] = wandb.Table([*table.names], rows)
            logger.experiment.log(media)
            logger.experiment.summary.update(dict(metrics))
        elif isinstance(logger, CSVLogger):
            Path(logger.log_dir).mkdir(parents=True, exist_ok=True)
            for name, table in page.tables.items():
                Path(logger.log_dir, f"{name}.csv").write_text(table.csv, encoding="utf-8")
        else:  # MLflow refuses most other characters
            allowed = {re.sub(r"[^\w./ -]", "_", name): value for name, value in metrics.items()}
            logger.log_metrics(allowed, step=0)
    for section in takewhile(lambda section: not section.figure, page.sections):
        if section.table:
            print_table(section.table)
    say(page.headline)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".html"):
            say(str(path))
    for purpose, command in page.about.get("next_commands", {}).items():
        say(f"{purpose}: {command}")
