"""Gives a run's results to every logger: metrics, figures, tables, the page, and artifacts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from posixpath import normpath
from typing import Any

import numpy as np
from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image

from ppf.conf import shortened
from ppf.report.csv_files import CSVFiles
from ppf.report.page import Page
from ppf.report.style import png
from ppf.report.tables import Cell, Column, Table

_LONGEST_NAME = 128  # characters of the name of a W&B artifact


@dataclass(frozen=True)
class Published:
    """What loggers get at the end of a run.

    Args:
        metrics: summary of the run, by name.
        figures: by name.
        tables: by name.
        page: the report as a file; None: there is none.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    page: Path | None = None

    @classmethod
    def of(cls, page: Page, file: Path, metrics: Mapping[str, float]) -> "Published":
        """Everything that a page shows.

        Args:
            file: where the page was written.
        """
        return cls(metrics, page.figures, page.tables, file)


@rank_zero_only
def publish(loggers: Sequence[Logger], found: Published) -> None:
    """Logs results to every logger, as far as the logger supports them."""
    for logger in loggers:
        for kind, give in _GIVE.items():
            if isinstance(logger, kind):
                give(logger, found)


@dataclass(frozen=True)
class Artifact:
    """Files that a run reads or makes.

    Args:
        paths: files and folders. Offline runs upload them at `wandb sync`: they must stay in their
            places.
        name: as in "tiny-policy"; artifacts of the same name are versions of each other.
        type: "policy", "predictor", "agent" or "model".
        used: True: the run reads the files; False: it makes them.
        metadata: plain values that describe the content.
        by_reference: only the place and the checksum of the files are logged, not their content.
    """

    paths: Sequence[Path]
    name: str
    type: str
    used: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    by_reference: bool = False


@rank_zero_only
def log_artifact(loggers: Sequence[Logger], artifact: Artifact) -> None:
    """Logs files as a versioned artifact of every W&B run, and as files of every MLflow run.

    W&B joins runs that make and use the same files to a lineage. It identifies files by name and
    content, so this also works for offline runs.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_lineage(logger, artifact)
        elif isinstance(logger, MLFlowLogger) and not (artifact.used or artifact.by_reference):
            for path in artifact.paths:
                logger.experiment.log_artifact(logger.run_id, str(path), artifact.type)


def _to_lineage(logger: WandbLogger, artifact: Artifact) -> None:
    import wandb

    name = shortened(re.sub(r"[^\w.-]", "_", artifact.name, flags=re.ASCII), _LONGEST_NAME)
    made = wandb.Artifact(name, artifact.type, metadata=dict(artifact.metadata))
    for path in map(Path.resolve, artifact.paths):
        if artifact.by_reference:
            made.add_reference(path.as_uri())
        elif path.is_dir():
            made.add_dir(str(path), policy="immutable", skip_cache=True)
        else:
            made.add_file(str(path), policy="immutable", skip_cache=True)
    # `use_artifact` refuses offline runs, though their files can say that they use an artifact.
    if not logger.experiment.disabled:
        logger.experiment._log_artifact(made, use_after_commit=artifact.used)


def _to_wandb(logger: WandbLogger, found: Published) -> None:
    import wandb

    run, media = logger.experiment, dict[str, Any]()
    for name, figure in found.figures.items():
        media[name] = wandb.Image(_picture(figure))
    for name, table in found.tables.items():
        columns: list[str | int] = [*table.names]
        media[f"tables/{name}"] = wandb.Table(columns, [list(row) for row in table.rows])
    if found.page:
        media["report"] = wandb.Html(found.page.read_text(encoding="utf-8"), inject=False)
    if media:
        run.log(media)
    run.summary.update(dict(found.metrics))


def _to_csv(logger: CSVFiles, found: Published) -> None:
    for name, table in {**found.tables, "summary": _summary(found.metrics)}.items():
        logger.write_table(name, table)


def _summary(metrics: Mapping[str, float]) -> Table:
    rows: list[list[Cell]] = [[name, value] for name, value in metrics.items()]
    return Table([Column("metric"), Column("value", str)], rows)


def _to_tensorboard(logger: TensorBoardLogger, found: Published) -> None:
    logger.log_metrics(dict(found.metrics), step=0)
    for name, figure in found.figures.items():
        pixels = np.asarray(_picture(figure).convert("RGB"))
        logger.experiment.add_image(name, pixels, dataformats="HWC")
    for name, table in found.tables.items():
        logger.experiment.add_text(name, table.markdown)


def _to_mlflow(logger: MLFlowLogger, found: Published) -> None:
    client, run = logger.experiment, logger.run_id
    # MLflow refuses absolute paths, "..", and most characters.
    names = {name: re.sub(r"[^\w./ -]", "_", normpath(name).lstrip("./")) for name in found.metrics}
    logger.log_metrics({names[name]: value for name, value in found.metrics.items()})
    for name, figure in found.figures.items():
        client.log_image(run, _picture(figure), f"figures/{name}.png")
    for name, table in found.tables.items():
        client.log_text(run, table.csv, f"tables/{name}.csv")
    if found.page:
        client.log_artifact(run, str(found.page))


_GIVE: dict[type, Callable[[Any, Published], None]] = {
    WandbLogger: _to_wandb,
    CSVFiles: _to_csv,
    TensorBoardLogger: _to_tensorboard,
    MLFlowLogger: _to_mlflow,
}


def _picture(figure: Figure) -> Image.Image:
    return Image.open(BytesIO(png(figure)))
