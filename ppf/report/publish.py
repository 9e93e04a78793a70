"""Gives a run's results to every logger: metrics, figures, tables, the page, and artifacts."""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image

from ppf.conf import shortened
from ppf.report.page import Page, write_page
from ppf.report.style import png

_LONGEST_NAME = 128  # characters of the name of a W&B artifact


@rank_zero_only
def publish(
    loggers: Sequence[Logger],
    page: Page,
    metrics: Mapping[str, float],
    folder: Path | None = None,
) -> None:
    """Writes report.html into a folder, and gives metrics, figures and tables to every logger.

    Args:
        metrics: summary of the run, by name.
        folder: of the run; None: no page is written.
    """
    file = folder and folder / "report.html"
    if file:
        write_page(file, page)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, page, metrics, file)
        elif isinstance(logger, CSVLogger):
            Path(logger.log_dir).mkdir(parents=True, exist_ok=True)
            for name, table in page.tables.items():
                Path(logger.log_dir, f"{name}.csv").write_text(table.csv, encoding="utf-8")
        elif isinstance(logger, TensorBoardLogger):
            logger.log_metrics(dict(metrics), step=0)
            for name, figure in page.figures.items():
                pixels = np.asarray(_picture(figure).convert("RGB"))
                logger.experiment.add_image(name, pixels, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            # MLflow refuses most other characters.
            names = {name: re.sub(r"[^\w./ -]", "_", name) for name in metrics}
            logger.log_metrics({names[name]: value for name, value in metrics.items()})
            if file:
                logger.experiment.log_artifact(logger.run_id, str(file))


def _to_wandb(
    logger: WandbLogger, page: Page, metrics: Mapping[str, float], file: Path | None
) -> None:
    import wandb

    media: dict[str, Any] = {n: wandb.Image(_picture(f)) for n, f in page.figures.items()}
    for name, table in page.tables.items():
        columns: list[str | int] = [*table.names]
        media[f"tables/{name}"] = wandb.Table(columns, [list(row) for row in table.rows])
    if file:
        media["report"] = wandb.Html(file.read_text(encoding="utf-8"), inject=False)
    if media:
        logger.experiment.log(media)
    logger.experiment.summary.update(dict(metrics))


def _picture(figure: Figure) -> Image.Image:
    return Image.open(BytesIO(png(figure)))


@rank_zero_only
def log_artifact(
    loggers: Sequence[Logger],
    paths: Sequence[Path],
    name: str,
    kind: str,
    *,
    used: bool = False,
    metadata: Mapping[str, Any] | None = None,
    by_reference: bool = False,
) -> None:
    """Logs files as a versioned artifact of every W&B run, and as files of every MLflow run.

    W&B joins runs that make and use the same files to a lineage. It identifies files by name and
    content, so this also works for offline runs.

    Args:
        paths: files and folders. Offline runs upload them at `wandb sync`: they must stay in their
            places.
        name: as in "tiny-policy"; artifacts of the same name are versions of each other.
        kind: "policy", "predictor", "agent" or "model".
        used: True: the run reads the files; False: it makes them.
        metadata: plain values that describe the content.
        by_reference: only the place and the checksum of the files are logged, not their content.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_lineage(logger, paths, name, kind, used, metadata, by_reference)
        elif isinstance(logger, MLFlowLogger) and not (used or by_reference):
            for path in paths:
                logger.experiment.log_artifact(logger.run_id, str(path), kind)


def _to_lineage(
    logger: WandbLogger,
    paths: Sequence[Path],
    name: str,
    kind: str,
    used: bool,
    metadata: Mapping[str, Any] | None,
    by_reference: bool,
) -> None:
    import wandb

    allowed = shortened(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII), _LONGEST_NAME)
    made = wandb.Artifact(allowed, kind, metadata=dict(metadata or {}))
    for path in map(Path.resolve, paths):
        if by_reference:
            made.add_reference(path.as_uri())
        elif path.is_dir():
            made.add_dir(str(path), policy="immutable", skip_cache=True)
        else:
            made.add_file(str(path), policy="immutable", skip_cache=True)
    # `use_artifact` refuses offline runs, though their files can say that they use an artifact.
    if not logger.experiment.disabled:
        logger.experiment._log_artifact(made, use_after_commit=used)
