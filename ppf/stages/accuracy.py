"""Scores of a predictor on policies that it was not fitted to."""

from collections.abc import Mapping

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.labels.collect import draw
from ppf.labels.context import PruningContext
from ppf.labels.groups import groups
from ppf.labels.table import Labels
from ppf.predictor.base import Trained
from ppf.predictor.scores import HeldOut, coverage_warning, with_intervals
from ppf.report.page import Page, ReportSection
from ppf.report.plots import scatter
from ppf.report.tables import accuracy_table
from ppf.space import new_policies
from ppf.stages.about import command_line

_STREAM = 4111  # added to the sampler's seed, so that scored policies differ from those of the fit


def score(
    cfg: DictConfig, context: PruningContext, trained: Trained, labels: Labels
) -> tuple[HeldOut, dict[str, float]]:
    """Predictions of another draw of the sampler, and scores on them, as in "test/nmse".

    Args:
        cfg: with sampler, seed and `test_policies`: the number of policies to draw, the dense one
            included. Those among the labels, and those without a finite loss, are left out.
        labels: policies that are not scored, the dense one first.
    """
    labelling, sites = context.labelling, context.sites
    drawn = draw(sites, instantiate(cfg.sampler), cfg.test_policies, cfg.seed + _STREAM)
    kept = new_policies(drawn, labels.kept)
    nll = labelling.measure(kept, "test").nll
    kept, nll = kept[nll.isfinite()], nll[nll.isfinite()].float()
    predicted = trained.predictor.predict(kept.to(labelling.model.lm.device))
    mean, std = (column.cpu() for column in predicted)
    ratio, group = sites.space.ratio(kept).float(), groups(sites.space, kept)
    rows = HeldOut(mean, std, nll, ratio, group)
    found = with_intervals(rows, float(labels.nll[0]))
    return rows, {f"test/{name}": score for name, score in found.items()}


def accuracy_page(scores: Mapping[str, float], rows: HeldOut) -> Page:
    """The report: predicted against measured, and the scores by name."""
    figure = scatter({name: column.tolist() for name, column in rows._asdict().items()})
    sections = [
        ReportSection("Accuracy", name="accuracy", table=accuracy_table(scores)),
        ReportSection("Predicted against measured", name="predictions", figure=figure),
    ]
    warning = coverage_warning(scores, "held-out policies")
    return Page("Accuracy of the predictor", warning, sections, {"command": command_line("train")})
