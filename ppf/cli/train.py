"""ppf-train: fits the mask → perplexity predictor."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import write_json
from ppf.cli.app import command
from ppf.cli.checks import changed, lies_in
from ppf.context import prepare
from ppf.labels.table import Labels
from ppf.plan import drawn_labels
from ppf.predictor.base import needs_labels, unfitted
from ppf.predictor.scores import coverage_warning, endings
from ppf.progress import say
from ppf.records.run import Outcome
from ppf.report.origin import command_line
from ppf.report.page import Page, ReportSection
from ppf.report.plots import scatter
from ppf.report.publish import log_artifact, publish
from ppf.report.style import save_png
from ppf.report.tables import accuracy_table
from ppf.stages.acquire import acquire, check_acquired
from ppf.stages.collect import check_sampler, collect
from ppf.stages.score import Scored, held_out, no_held_out, score
from ppf.stages.train import check_members, check_start, check_trainer, folds, train


def check_fit(cfg: DictConfig, given: Sequence[str]) -> None:
    """Raises PPFError if the predictor cannot be fitted; names overrides that it does not read."""
    check_acquired(cfg)
    check_start(cfg.predictor)
    check_trainer(cfg.trainer)
    check_members(cfg)
    unread = [key for key in changed(given) if lies_in(key, ["trainer"])]
    if unread and not needs_labels(unfitted(cfg.predictor)):  # comparisons give all the same keys
        say(f"A predictor that is not trained does not read {', '.join(unread)}.")


def _check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    check_fit(cfg, overrides)
    predictor = unfitted(cfg.predictor)
    if not (cfg.test_policies or needs_labels(predictor) or hasattr(predictor, "held_out")):
        raise no_held_out()


@command(_check)
def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Trains the predictor, scores it and plots predicted against measured."""
    context = prepare(cfg, fabric, check=partial(check_sampler, cfg))
    parts = context.labelling, context.sites
    fit = partial(train, *parts, None, cfg.predictor, cfg.trainer, cfg.seed, fabric.loggers)
    may_label = cfg.upstream == "make"
    labels = collect(
        *(*parts, cfg.sampler, drawn_labels(cfg), cfg.seed),
        folds=folds(cfg.predictor),
        may_label=may_label,
    )
    labels = acquire(*parts, labels, fit, cfg.labels, cfg.sampler, cfg.seed)
    trained = fit(labels)
    predictor, bands = trained.predictor, cfg.predictor.get("bands", [])
    if count := cfg.test_policies:
        found = score(*parts, predictor, labels, cfg.sampler, count, cfg.seed, bands)
    else:
        found = held_out(predictor)
    metric = found.metrics.get("test/nmse")
    if not fabric.is_global_zero:
        return Outcome(metric)
    row, figure = _row(found, labels), scatter(*(x.tolist() for x in found.held_out[:4]))
    picture, scores = (
        Path(cfg.paths.run) / name for name in ("predicted_measured.png", "scores.json")
    )
    save_png(figure, picture)
    write_json(scores, row)
    table, warning = accuracy_table(row, bands), coverage_warning(row, bands, "held-out policies")
    sections = [
        ReportSection("Accuracy", name="accuracy", table=table),
        ReportSection("Predicted against measured", name="predictions", figure=figure),
    ]
    page = Page("Accuracy of the predictor", warning, sections, {"command": command_line("train")})
    publish(Path(cfg.paths.run), fabric.loggers, page, found.metrics)
    if needs_labels(predictor):
        name = f"{cfg.model.name}-predictor"
        log_artifact(fabric.loggers, [trained.folder], name, "predictor")
    if needs_labels(predictor):  # others are not stored
        say(f"Predictor: {trained.folder}")
    say(f"Picture:   {picture}\nScores:    {scores}")
    return Outcome(metric, [_brief(row, bands)])


def _row(found: Scored, labels: Labels) -> dict[str, float]:
    """All scores, and the numbers of policies behind them."""
    scores = {name.removeprefix("test/"): value for name, value in found.metrics.items()}
    scores = {"nmse": scores.pop("nmse", math.nan), **scores}  # what sweeps rank by
    return {**scores, "labels": len(labels), "acquired": int(labels.acquired.sum())}


def _brief(row: Mapping[str, float], bands: Sequence[float]) -> dict[str, float]:
    """The scores over all ratios, and for each band the two most important for a search."""
    ends = [ending for _, ending in endings(bands)]
    return {
        name: value
        for name, value in row.items()
        if name.startswith(("equal_ratio", "coverage")) or not any(end in name for end in ends)
    }
