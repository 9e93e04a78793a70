"""acquire: labels the policies that lower the predictor's variance most (active learning)."""

from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.context.labelling import Labelling
from ppf.errors import PPFError
from ppf.labels.collect import draw
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import ACQUIRED, Labels
from ppf.predictor.learned import LearnedPredictor
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
        PPFError: the predictor has no Gaussian process, the pool is too small, or a label is
            missing and `may_label` is false.
    """
    if not settings.acquired:
        return labels
    predictor = train(labels).predictor
    if not isinstance(predictor, LearnedPredictor):
        raise _no_process()
    drawn = draw(sites, instantiate(sampler), settings.pool, seed + _STREAM)
    others, limit = new_policies(drawn, labels.kept), float(labels.nll[0]) + USUAL
    ranks = labelling.artefacts.ranks
    policies = on_rank_0(ranks, lambda: _chosen(predictor, others, limit, settings.acquired))
    acquired = labelling.stored_or_measured(
        policies, ACQUIRED, "python train.py", may_label=may_label
    )
    return labels.with_rows(policies, acquired.nll, ACQUIRED)


def check_acquired(cfg: DictConfig) -> None:
    """Raises PPFError if `labels.acquired` is set and the predictor cannot choose policies."""
    if cfg.labels.acquired and not cfg.predictor.get("residual"):
        raise _no_process()
    _check_pool(cfg.labels.pool - 1, cfg.labels.acquired)  # one of the draws is dense


def _no_process() -> PPFError:
    return PPFError("labels.acquired needs a Gaussian process to choose: give predictor=residual.")


def _check_pool(pool: int, count: int) -> None:
    if pool < count:
        raise PPFError(
            f"labels.acquired={count} is more than the {pool} policies to choose from:"
            " give a larger labels.pool."
        )


def _chosen(
    predictor: LearnedPredictor, pool: Int[Tensor, "pool sites"], limit: float, count: int
) -> Int[Tensor, "chosen sites"]:
    pool = pool.to(predictor.module.device)
    pool = pool[predictor.predict(pool).mean < limit]
    _check_pool(len(pool), count)
    return pool[predictor.select(pool, count)].cpu()
