"""acquire: labels the policies that lower the predictor's variance most (active learning)."""

from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.commands import invocation
from ppf.errors import PPFError
from ppf.labels.collect import draw
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import ACQUIRED, Labels
from ppf.predictor.base import Predictor, Select, unfitted
from ppf.predictor.scores import USUAL
from ppf.ranks import on_rank_0
from ppf.space import new_policies
from ppf.stages.train import Train

_STREAM = 77  # added to the sampler's seed, so that the pool differs from the labelled draws


def acquire(
    labelling: Labelling,
    sites: SamplingContext,
    labels: Labels,
    train: Train,
    settings: DictConfig,
    sampler: DictConfig,
    seed: int,
    *,
    may_label: bool = True,
) -> Labels:
    """Labels `labels.acquired` more policies, which a predictor of the given labels chooses.

    The pool is `labels.pool` further draws of the sampler, without those whose predicted perplexity
    is above ten times the dense model's. The chosen policies lower the predictor's mean variance
    over the pool most. A larger `labels.acquired` keeps the policies of a smaller one.

    Args:
        train: fits the predictor.
        settings: section `labels` of the config.
        sampler: config of the sampler.
        seed: of the given labels' sampler.

    Raises:
        PPFError: the predictor cannot choose, the pool is too small, or a label is missing and
            `may_label` is false.
    """
    if not settings.acquired:
        return labels
    predictor = train(labels).predictor
    drawn = draw(sites, instantiate(sampler), settings.pool, seed + _STREAM)
    others = new_policies(drawn, labels.kept).to(labelling.model.lm.device)
    limit = float(labels.nll[0]) + USUAL
    ranks = labelling.artefacts.ranks
    policies = on_rank_0(ranks, lambda: _chosen(predictor, others, limit, settings.acquired))
    acquired = labelling.stored_or_measured(
        policies, ACQUIRED, invocation("train"), may_label=may_label
    )
    return labels.with_rows(policies, acquired.nll, ACQUIRED)


def check_acquired(cfg: DictConfig) -> None:
    """Raises PPFError if `labels.acquired` is set and the predictor cannot choose policies."""
    if cfg.labels.acquired:
        _select_of(unfitted(cfg.predictor))
    _check_pool(cfg.labels.pool - 1, cfg.labels.acquired)  # one of the draws is dense


def _select_of(predictor: Predictor) -> Select:
    select: Select | None = getattr(predictor, "select", None)
    if select is None:
        raise PPFError(
            "labels.acquired needs a predictor that can choose policies: give predictor=residual."
        )
    return select


def _check_pool(pool: int, count: int) -> None:
    if pool < count:
        raise PPFError(
            f"labels.acquired={count} is more than the {pool} policies to choose from:"
            " give a larger labels.pool."
        )


def _chosen(
    predictor: Predictor, pool: Int[Tensor, "pool sites"], limit: float, count: int
) -> Int[Tensor, "chosen sites"]:
    pool = pool[predictor.predict(pool).mean < limit]
    _check_pool(len(pool), count)
    return pool[_select_of(predictor)(pool, count)].cpu()
