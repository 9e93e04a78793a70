"""prune: a policy becomes a model on disk with really smaller tensors."""

from math import exp
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.evaluation.perplexity import Piece, pieces_nll
from ppf.progress import say
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.sequential import refit_sequentially
from ppf.stages.policy import check_signature, policy_config
from ppf.stages.prepare import PruningContext, prepare


def prune(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Path:
    """Exports the policy's model to the folder `cfg.out`; returns what `cfg.export` wrote.

    With `cfg.sequential` its consumers are refitted first.
    """
    context = apply_policy(cfg, fabric, record)
    if cfg.sequential and can_refit(context):
        windows = context.text.tokens("labelling", context.lm.tokenizer)
        scored, batch = [Piece(windows, context.cfg.labels.context)], context.cfg.labels.batch
        before = pieces_nll(context.lm.model, scored, batch=batch)
        refit(context)
        after = pieces_nll(context.lm.model, scored, batch=batch)
        say(
            f"Sequential re-estimation: perplexity on the labelling part {exp(before):.2f} before,"
            f" {exp(after):.2f} after (measured)."
        )
        record = record | {"sequential": {"measured": {"nll_before": before, "nll": after}}}
    return instantiate(cfg.export, _partial_=True)(context.pruner, Path(cfg.out), record)


def apply_policy(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> PruningContext:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`."""
    config = policy_config(record, cfg)
    check_signature(record, config)
    context = prepare(config, fabric, dtype=cfg.dtype)
    context.pruner.apply(context.space.policy(record["kept"]))
    return context


def can_refit(context: PruningContext) -> bool:
    """Whether the present policy's consumers can be re-estimated; says why, where they cannot."""
    config = context.lm.model.config
    if context.pruner.kept == context.space.dense.tolist():
        return False
    if isinstance(instantiate(context.cfg.compensation), NoCompensation):
        say("No sequential re-estimation: compensation=none estimates nothing.")
        return False
    if not context.lm.adapter.adds_to_stream(config):
        say(
            f"No sequential re-estimation: blocks of the family '{config.model_type}' end in norms."
        )
        return False
    return True


def refit(context: PruningContext) -> None:
    """Re-estimates the present policy's consumers front to back, on the calibration part."""
    windows = context.text.tokens("calibration", context.lm.tokenizer)
    refit_sequentially(context.pruner, windows, instantiate(context.cfg.compensation))
