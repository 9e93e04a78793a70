"""What is measured after a search has ended: the policy as users get it, and the test part."""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.artefacts import get_or_make, signature
from ppf.evaluation import LogPerplexity
from ppf.evaluation.perplexity import mean_nll
from ppf.labels.compensating import keep_better
from ppf.labels.context import PruningContext
from ppf.text.identity import text_identity


def add_delivered(
    cfg: DictConfig, context: PruningContext, kept: list[int], summary: dict[str, Any]
) -> None:
    """Measures the policy with sequential compensation, on this rank alone.

    The re-estimated weights are stored, so `evaluate`, `prune` and `recover` need not repeat this.

    Args:
        summary: contents of summary.json; gets a key `delivered` with the perplexities, or None if
            there is nothing to re-estimate. If the test part is asked for, the perplexity there is
            that of the better compensation.
    """
    with context.model.at(kept) as model:
        choice = keep_better(context.labelling, context.calibration, cfg.refit_windows)
        found = choice and choice.record()
        if found and cfg.report_test:
            nll = mean_nll(model, _windows(context), batch=cfg.labels.batch)
            found["test"] = LogPerplexity(nll).record()
    summary["delivered"] = found


def add_test(cfg: DictConfig, context: PruningContext, summary: dict[str, Any]) -> None:
    """Measures the dense model, uniform pruning and PPF on the test part, on this rank alone.

    Pruned models have one-shot compensation. A measurement is an artefact, so that the searches of
    one model measure the dense model and uniform pruning once.

    Args:
        summary: contents of summary.json; rows that say what each site keeps get a key `test`.
    """
    windows = _windows(context)
    given = context.signatures.labels, text_identity(cfg, "test")
    for row in summary["results"]:
        if "kept" not in row:
            continue
        units, types = [*row["kept"].values()], [*row.get("types", {}).values()] or None

        def make(draft: Path, units: Any = units, types: Any = types) -> None:
            with context.model.pruner.at(units, types) as model:
                nll = mean_nll(model, windows, batch=cfg.labels.batch)
            draft.write_text(json.dumps(nll), encoding="utf-8")

        name = signature("tested", *given, units, types)
        file = context.labelling.artefacts.folder / "tested" / f"{name}.json"
        nll = get_or_make(file, read=lambda path: float(path.read_text()), make=make)
        row["test"] = LogPerplexity(nll).record()
    summary["test"] = dict(zip(("windows", "window"), windows.shape, strict=True))


def _windows(context: PruningContext) -> Int[Tensor, "windows window"]:
    return context.text.tokens("test", context.model.lm.tokenizer)
