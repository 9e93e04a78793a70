"""acquire: labels of the policies that lower the predictor's variance most."""

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.collect import draw
from ppf.labels.table import ACQUIRED, Labels
from ppf.predictor.learned import LearnedPredictor
from ppf.predictor.scores import USUAL
from ppf.ranks import on_rank_0
from ppf.space import new_policies
from ppf.stages.collect import label_store, measure
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import require
from ppf.stages.train import train

_STREAM = 77  # of the pool's seed: draws that are no labels


def acquire(
    context: PruningContext,
    labels: Labels,
    *,
    beside: Int[Tensor, "rows sites"] | None = None,
    upstream: bool = False,
) -> Labels:
    """Adds `labels.acquired` labels, of policies that the predictor chooses.

    The pool is `labels.pool` further draws of the sampler, without those that are predicted above
    ten times the dense model's perplexity. The chosen policies lower the predictor's integrated
    variance over the pool most. A larger `labels.acquired` only adds to a smaller one.

    Args:
        beside: policies that must not be chosen.
        upstream: called by a later stage, which `upstream=require` forbids to train and to label.

    Raises:
        PPFError: the predictor has no Gaussian process, or the pool is too small.
    """
    cfg = context.cfg
    if not cfg.labels.acquired:
        return labels
    check_acquired(cfg)
    predictor = train(context, labels, upstream=upstream).predictor
    assert isinstance(predictor, LearnedPredictor)
    known = labels.kept if beside is None else torch.cat([labels.kept, beside])
    pool = new_policies(
        draw(context, instantiate(cfg.sampler), cfg.labels.pool, cfg.seed + _STREAM), known
    )
    limit = float(labels.nll[0]) + USUAL
    policies = on_rank_0(context.fabric, lambda: _chosen(predictor, pool, limit, cfg))
    store = label_store(context)
    missing = any(kept not in store for kept in policies.tolist())
    if upstream and context.fabric.broadcast(missing):
        require(cfg, "labels", "python train.py")
    measured = measure(context, policies, ACQUIRED)
    return labels.with_rows(policies, measured.nll, ACQUIRED)


def check_acquired(cfg: DictConfig) -> None:
    """Raises PPFError if labels shall be acquired and the predictor cannot choose them."""
    if cfg.labels.acquired and not cfg.predictor.get("residual"):
        raise PPFError(
            "labels.acquired needs a Gaussian process to choose: give predictor=residual."
        )


def _chosen(
    predictor: LearnedPredictor, pool: Int[Tensor, "pool sites"], limit: float, cfg: DictConfig
) -> Int[Tensor, "chosen sites"]:
    count, pool = cfg.labels.acquired, pool.to(predictor.module.device)
    pool = pool[predictor.predict(pool).mean < limit]
    if len(pool) < count:
        raise PPFError(
            f"labels.acquired={count} is more than the {len(pool)} policies to choose"
            " from: give a larger labels.pool."
        )
    return pool[predictor.select(pool, count)].cpu()
