"""Scores of a predictor on policies that it was not fitted to."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.errors import PPFError
from ppf.labels.collect import draw
from ppf.labels.table import Labels
from ppf.predictor.base import HeldOut, Predictor
from ppf.predictor.protocol import Prediction
from ppf.predictor.scores import Scores
from ppf.space import new_policies
from ppf.stages.collect import measure
from ppf.stages.prepare import PruningContext

_STREAM = 99  # of the sampler's seed: draws that are no labels


class Scored(NamedTuple):
    """Policies that a predictor was not fitted to, and its scores on them, as in "test/nmse"."""

    held_out: HeldOut
    metrics: Mapping[str, float]


def held_out(predictor: Predictor) -> Scored:
    """Scores on the policies that the training held out.

    Raises:
        PPFError: the predictor holds out no labels.
    """
    if predictor.held_out is None:
        raise PPFError(
            "this predictor holds out no labels, so it has no scores: give test_policies=256, which"
            " labels further policies for the scores, or a predictor that Lightning trains, such as"
            " predictor=residual."
        )
    return Scored(predictor.held_out, predictor.metrics)


def score(
    context: PruningContext,
    predictor: Predictor,
    labels: Labels,
    sampler: DictConfig,
    count: int,
    seed: int,
    bands: Sequence[float],
) -> Scored:
    """Scores on another draw of the sampler.

    Args:
        labels: policies that do not count, the dense one first.
        count: policies of the draw; those that break the model are left out.
        bands: edges of the ratio bands that are scored, too.
    """
    drawn = draw(context, instantiate(sampler), count, seed + _STREAM)
    kept = new_policies(drawn, labels.kept)
    nll = measure(context, kept, "test").nll
    kept, nll = kept[nll.isfinite()], nll[nll.isfinite()].float()
    found, ratio = predictor.predict(kept.to(context.lm.device)), context.space.ratio(kept).float()
    mean, std = found.mean.cpu(), found.std.cpu()
    scores = Scores(bands, float(labels.nll[0]))
    scores.update(Prediction(mean, std), nll, ratio)
    metrics = {f"test/{name}": float(value) for name, value in scores.compute().items()}
    return Scored(HeldOut(mean, std, nll, ratio), metrics)
