"""Perplexities on the test part of the text, measured after a search has ended."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ppf.artefacts import get_or_make, signature
from ppf.evaluation.perplexity import mean_nll
from ppf.labels.compensating import keep_better
from ppf.labels.context import PruningContext
from ppf.report.numbers import LogPerplexity
from ppf.text.identity import text_identity


def add_test(cfg: DictConfig, context: PruningContext, summary: dict[str, Any]) -> None:
    """Measures the dense model, uniform pruning and PPF on the test part, on this rank alone.

    A measurement is an artefact, so that the searches of one model measure the dense model and
    uniform pruning once.

    Args:
        cfg: if its key `sequential` is true, re-estimate the compensation if that lowers the
            perplexity.
        summary: contents of summary.json; rows that say what each site keeps get a key `test`.
    """
    windows = context.text.tokens("test", context.model.lm.tokenizer)
    refitted = cfg.sequential and {"windows": cfg.refit_windows}
    given = context.signatures.labels, text_identity(cfg, "test"), refitted
    for row in summary["results"]:
        if "kept" not in row:
            continue
        units, types = [*row["kept"].values()], [*row.get("types", {}).values()] or None

        def make(draft: Path, units: Any = units, types: Any = types) -> None:
            with context.model.pruner.at(units, types) as model:
                if cfg.sequential:
                    keep_better(context.labelling, context.calibration, cfg.refit_windows)
                nll = mean_nll(model, windows, batch=cfg.labels.batch)
            draft.write_text(json.dumps(nll), encoding="utf-8")

        name = signature("tested", *given, units, types)
        file = context.labelling.artefacts.folder / "tested" / f"{name}.json"
        nll = get_or_make(file, read=lambda path: float(path.read_text()), make=make)
        row["test"] = LogPerplexity(nll).record()
    count, window = windows.shape
    summary["test"] = {"windows": count, "window": window, "sequential": cfg.sequential}
