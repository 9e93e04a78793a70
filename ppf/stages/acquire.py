"""ask: labels for the policies that a predictor of the drawn ones would learn most from."""

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.collect import draw, label
from ppf.labels.table import ACQUIRED, Labels
from ppf.predictor.acquisition import select_by_integrated_variance
from ppf.predictor.module import PredictorModule
from ppf.predictor.scores import USUAL
from ppf.ranks import on_rank_0
from ppf.space import new_policies
from ppf.stages.collect import label_store
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
    """The labels, and `labels.acquired` more: of policies that their predictor knows least about.

    They are chosen from `labels.pool` further draws of the sampler, among those that are predicted
    below ten times the dense model's perplexity, so that the predictor's variance over all of these
    falls most. Larger `labels.acquired` only adds to a smaller one.

    Args:
        beside: policies that are not to be asked for.
        upstream: called by a later stage, which `upstream=require` forbids to train and to label.

    Raises:
        PPFError: the predictor has no Gaussian process, or the pool is too small.
    """
    cfg = context.cfg
    if not cfg.labels.acquired:
        return labels
    if not cfg.predictor.residual:
        raise PPFError(
            "labels.acquired needs a Gaussian process to choose: give predictor=residual."
        )
    predictor = train(context, labels, upstream=upstream).fitted.predictor
    known = labels.kept if beside is None else torch.cat([labels.kept, beside])
    pool = new_policies(
        draw(context, instantiate(cfg.sampler), cfg.labels.pool, cfg.seed + _STREAM), known
    )
    policies = on_rank_0(context.fabric, lambda: _chosen(predictor, pool, cfg.labels.acquired))
    store = label_store(context)
    missing = any(kept not in store for kept in policies.tolist())
    if upstream and context.fabric.broadcast(missing):
        require(cfg, "labels", "python train.py")
    measured = label(store, context.labeller, policies, ACQUIRED)
    return labels.with_rows(policies, measured.nll, ACQUIRED)


def _chosen(
    predictor: PredictorModule, pool: Int[Tensor, "pool sites"], count: int
) -> Int[Tensor, "count sites"]:
    assert predictor.residual is not None
    pool = pool.to(predictor.device)
    pool = pool[predictor.predict(pool).mean < predictor.dense_nll + USUAL]
    if len(pool) < count:
        raise PPFError(
            f"labels.acquired={count} is more than the {len(pool)} policies to choose"
            " from: give a larger labels.pool."
        )
    return pool[select_by_integrated_variance(predictor.residual, pool, count)].cpu()
