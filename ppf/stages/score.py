"""Scores of a predictor on policies that it was not fitted to."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.errors import PPFError
from ppf.labels.collect import draw
from ppf.labels.groups import groups
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import Labels
from ppf.predictor.base import Predictor
from ppf.predictor.scores import HeldOut, with_intervals
from ppf.space import new_policies

_STREAM = 4111  # added to the sampler's seed, so that scored policies differ from those of the fit


class Scored(NamedTuple):
    """Policies that a predictor was not fitted to, and its scores on them, as in "test/nmse"."""

    held_out: HeldOut
    metrics: Mapping[str, float]


def out_of_fold(predictor: Predictor) -> Scored | None:
    """Scores on the out-of-fold predictions of the training; None: the predictor has none."""
    rows = getattr(predictor, "held_out", None)
    return None if rows is None else Scored(rows, getattr(predictor, "metrics", {}))


def held_out(predictor: Predictor) -> Scored:
    """As `out_of_fold`, for predictors that must have such predictions.

    Raises:
        PPFError: the predictor has none.
    """
    found = out_of_fold(predictor)
    if found is None:
        raise no_held_out()
    return found


def no_held_out() -> PPFError:
    """The error for a predictor that cannot be scored on its own labels."""
    return PPFError(
        "this predictor has no out-of-fold predictions to score: give test_policies=256, which"
        " labels further policies for the scores, or a predictor that Lightning trains, such as"
        " predictor=residual."
    )


def score(
    labelling: Labelling,
    sites: SamplingContext,
    predictor: Predictor,
    labels: Labels,
    sampler: DictConfig,
    count: int,
    seed: int,
    bands: Sequence[float],
) -> Scored:
    """Scores on another draw of the sampler.

    Args:
        labels: policies that are not scored, the dense one first.
        count: policies to draw, the dense one included. Those among the labels, and those without a
            finite loss, are left out.
        bands: edges of the ratio bands that are scored, too.
    """
    drawn = draw(sites, instantiate(sampler), count, seed + _STREAM)
    kept = new_policies(drawn, labels.kept)
    nll = labelling.measure(kept, "test").nll
    kept, nll = kept[nll.isfinite()], nll[nll.isfinite()].float()
    mean, std = (column.cpu() for column in predictor.predict(kept.to(labelling.model.lm.device)))
    ratio, group = sites.space.ratio(kept).float(), groups(sites.space, kept)
    rows = HeldOut(mean, std, nll, ratio, group)
    found = with_intervals(rows, bands, float(labels.nll[0]))
    return Scored(rows, {f"test/{name}": score for name, score in found.items()})
