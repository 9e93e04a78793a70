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
from ppf.stages.prepare import Prepared, prepare


def prune(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Path:
    """Exports the policy's model to the folder `cfg.out`; returns what `cfg.export` wrote.

    With `cfg.sequential` its consumers are refitted first.
    """
    ready = apply_policy(cfg, fabric, record)
    if cfg.sequential and can_refit(ready):
        windows = ready.text.tokens("labelling", ready.lm.tokenizer)
        scored, batch = [Piece(windows, ready.cfg.labels.context)], ready.cfg.labels.batch
        before = pieces_nll(ready.lm.model, scored, batch=batch)
        refit(ready)
        after = pieces_nll(ready.lm.model, scored, batch=batch)
        say(
            f"Sequential re-estimation: perplexity on the labelling part {exp(before):.2f} before,"
            f" {exp(after):.2f} after (measured)."
        )
        record = record | {"sequential": {"measured": {"nll_before": before, "nll": after}}}
    return instantiate(cfg.export, _partial_=True)(ready.pruner, Path(cfg.out), record)


def apply_policy(cfg: DictConfig, fabric: Fabric, record: dict[str, Any]) -> Prepared:
    """The policy's model, loaded and pruned in place, in `cfg.dtype`."""
    config = policy_config(record, cfg)
    check_signature(record, config)
    ready = prepare(config, fabric, dtype=cfg.dtype)
    ready.pruner.apply(ready.space.policy(record["kept"]))
    return ready


def can_refit(ready: Prepared) -> bool:
    """Whether the present policy's consumers can be re-estimated; says why, where they cannot."""
    config = ready.lm.model.config
    if ready.pruner.kept == ready.space.dense.tolist():
        return False
    if isinstance(instantiate(ready.cfg.compensation), NoCompensation):
        say("No sequential re-estimation: compensation=none estimates nothing.")
        return False
    if not ready.lm.adapter.adds_to_stream(config):
        say(
            f"No sequential re-estimation: blocks of the family '{config.model_type}' end in norms."
        )
        return False
    return True


def refit(ready: Prepared) -> None:
    """Re-estimates the present policy's consumers front to back, on the calibration part."""
    windows = ready.text.tokens("calibration", ready.lm.tokenizer)
    refit_sequentially(ready.pruner, windows, instantiate(ready.cfg.compensation))
