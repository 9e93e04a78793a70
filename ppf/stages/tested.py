"""Perplexities on the test part of the text, measured after a search has ended."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from ppf.artefacts import get_or_make, signature, write_json
from ppf.context import PruningContext
from ppf.evaluation.perplexity import mean_nll
from ppf.report.scores import LogPerplexity
from ppf.report.search import SearchReport
from ppf.stages.prune import pruned_to
from ppf.text.identity import text_identity

Named = tuple[str, list[int]]
"""A policy's name in summary.json, and the units that it keeps at each site."""


def with_test(
    cfg: DictConfig, context: PruningContext, report: SearchReport, policies: Sequence[Named]
) -> SearchReport:
    """Measures policies on the test part, on this rank alone, and adds them to summary.json.

    A measurement is an artefact, so that the searches of one model measure the dense model and
    uniform pruning once.

    Args:
        cfg: if its key `sequential` is true, re-estimate the compensation if that lowers the
            perplexity.
        policies: name and kept units of the policies to measure, in the order of the report's
            entries. Other entries stay without a test value.
    """
    windows = context.text.tokens("test", context.model.lm.tokenizer)
    sequential, folder = cfg.sequential, context.artefacts.folder / "tested"
    refitted = sequential and {"windows": cfg.refit_windows}
    given = context.signatures.labels, text_identity(cfg, "test"), refitted

    def measured(kept: Sequence[int]) -> LogPerplexity:
        units, types = context.model.decode(kept)

        def make(draft: Path) -> None:
            parts = context.labelling, context.calibration
            how = {"sequential": sequential, "windows": cfg.refit_windows}
            with pruned_to(*parts, units, types, **how) as model:
                nll = mean_nll(model, windows, batch=cfg.labels.batch)
            draft.write_text(json.dumps(nll), encoding="utf-8")

        file = folder / f"{signature('tested', *given, list(units), types)}.json"
        return LogPerplexity(get_or_make(file, read=_number, make=make))

    names, left = {name for name, _ in policies}, iter(policies)
    entries = [
        replace(entry, test=measured(next(left)[1])) if entry.policy in names else entry
        for entry in report.entries
    ]
    summary, (count, window) = Path(report.paths["summary"]), windows.shape
    content = json.loads(summary.read_text(encoding="utf-8"))
    content["results"] = [entry.record() for entry in entries]
    content["test"] = {"windows": count, "window": window, "sequential": sequential}
    write_json(summary, content)
    return replace(report, entries=entries)


def _number(file: Path) -> float:
    return float(json.loads(file.read_text(encoding="utf-8")))
