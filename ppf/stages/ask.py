"""ask: labels for the policies that a predictor of the drawn ones would learn most from."""

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.collect import draw, label
from ppf.labels.table import ASKED, Labels
from ppf.predictor.module import PredictorModule
from ppf.predictor.scores import USUAL
from ppf.space import new_policies
from ppf.stages.artefacts import require
from ppf.stages.collect import label_store
from ppf.stages.prepare import Prepared
from ppf.stages.train import train

_STREAM = 77  # of the pool's seed: draws that are no labels


def ask(
    ready: Prepared,
    labels: Labels,
    *,
    beside: Int[Tensor, "rows sites"] | None = None,
    upstream: bool = False,
) -> Labels:
    """The labels, and `labels.asked` more: of policies that their predictor knows least about.

    They are chosen from `labels.pool` further draws of the sampler, among those that are predicted
    below ten times the dense model's perplexity, so that the predictor's variance over all of these
    falls most. Larger `labels.asked` only adds to a smaller one.

    Args:
        beside: policies that are not to be asked for.
        upstream: called by a later stage, which `upstream=require` forbids to train and to label.

    Raises:
        PPFError: the predictor has no Gaussian process, or the pool is too small.
    """
    cfg = ready.cfg
    if not cfg.labels.asked:
        return labels
    if not cfg.predictor.residual:
        raise PPFError("labels.asked needs a Gaussian process to choose: give predictor=residual.")
    predictor = train(ready, labels, upstream=upstream).fitted.predictor
    known = labels.kept if beside is None else torch.cat([labels.kept, beside])
    policies = ready.fabric.broadcast(_chosen(ready, predictor, known))
    store = label_store(ready)
    if upstream and any(kept not in store for kept in policies.tolist()):
        require(cfg, "labels", "python train.py")
    measured = label(store, ready.labeller, policies, ASKED)
    return labels.with_rows(policies, measured.nll, ASKED)


def _chosen(
    ready: Prepared, predictor: PredictorModule, known: Int[Tensor, "rows sites"]
) -> Int[Tensor, "policies sites"]:
    cfg = ready.cfg
    assert predictor.residual is not None
    drawn = draw(ready, instantiate(cfg.sampler), cfg.labels.pool, cfg.seed + _STREAM)
    pool = new_policies(drawn, known).to(predictor.device)
    pool = pool[predictor.predict(pool).mean < predictor.dense_nll + USUAL]
    if len(pool) < cfg.labels.asked:
        raise PPFError(
            f"labels.asked={cfg.labels.asked} is more than the {len(pool)} policies to choose from:"
            " give a larger labels.pool."
        )
    return pool[predictor.residual.most_telling(pool, cfg.labels.asked)].cpu()
