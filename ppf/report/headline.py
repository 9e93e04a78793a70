"""The result of a run, in words."""

import math
from collections.abc import Sequence

from ppf.evaluation.results import Evaluation, ModelResult
from ppf.report.scores import (
    Entry,
    LogPerplexity,
    change,
    decimal,
    gain,
    mebibytes,
    millions,
    percent,
    signed_percent,
    uniform_at,
)


def search_headline(entries: Sequence[Entry]) -> list[str]:
    """Compares the policy found with uniform pruning, the best allocation rule and the dense model.

    The selection part comes first if it was measured: the search did not use its windows.

    Args:
        entries: measured policies, among them "PPF".
    """
    found = {entry.policy: entry for entry in entries}
    best = found["PPF"]
    even = uniform_at(best.ratio, entries)
    first = (
        _is_uniform(best) if even is None or even == best.measured else _against_uniform(best, even)
    )
    return [*first, *_others(best, entries), *_smaller(best, found.get("dense"))]


def _is_uniform(best: Entry) -> list[str]:
    where, others = "labelling", "measured policy is better"
    if best.selection:
        where = "selection"
        others = "finalist has a lower loss over the labelling and selection parts together"
    score = best.selection or best.measured
    assert score
    return [
        f"The policy found is that of {baseline(best)}: no other {others}."
        f" Perplexity {_with_error(score)} on the {where} part, {_saving(best)}."
    ]


def _against_uniform(best: Entry, even: LogPerplexity) -> list[str]:
    measured, score, gained = best.measured, best.selection, gain(best)
    assert measured
    less = _bracketed(change(measured.perplexity, even.perplexity))
    if score is None:
        return [
            f"Perplexity {measured} instead of {even} for {baseline(best)}{less}, {_saving(best)}."
        ]
    beside = f": {signed_with_error(*gained)} against {baseline(best)}" if gained else ""
    return [
        f"Perplexity {_with_error(score)} on the selection part, whose windows the search did not"
        f" use{beside}, {_saving(best)}.",
        f"On the labelling part, which the search optimised: {measured} instead of {even}{less}.",
    ]


def baseline(entry: Entry) -> str:
    """What the policy named "uniform" does."""
    return even_pruning(entry.bytes is not None)


def even_pruning(rounded: bool) -> str:
    """What the policy named "uniform" does, if policies also round weights or not."""
    return "an equal share of bytes at every site" if rounded else "uniform pruning"


def _saving(entry: Entry) -> str:
    return _saved(entry.ratio, entry.bytes is not None).strip()


def _saved(ratio: float | None, rounded: bool) -> str:
    if ratio is None:
        return ""
    shown = percent(ratio)
    return f" with {shown} fewer bytes" if rounded else f" at a pruning ratio of {shown}"


def _removed(share: float | None, rounded: bool) -> str:
    """As `_saved`, for a share of parameters, which need not be the budget of the search."""
    if rounded or share is None:
        return _saved(share, rounded)
    return f" with {percent(share)} of the prunable parameters removed"


def _with_error(score: LogPerplexity) -> str:
    """For example "44.00 ± 2.20"."""
    return str(score) if score.error is None else f"{score} ± {decimal(score.error)}"


def signed_with_error(change: float, error: float) -> str:
    """For example "−18.1 ± 1.0 %"."""
    return f"{signed_percent(change).removesuffix(' %')} ± {percent(error)}"


def _bracketed(share: float) -> str:
    return f" ({signed_percent(share)})" if math.isfinite(share) else ""


def _others(best: Entry, entries: Sequence[Entry]) -> list[str]:
    """Sentences on the allocation rules and the dense model, if these were measured."""
    said, where = [], " on the labelling part" if best.selection else ""
    rules = [e for e in entries if e.rules and e.measured]
    if rules:
        rule = min(rules, key=lambda e: _finite(e.measured.nll))  # type: ignore[union-attr]
        same = best.measured and rule.measured and best.measured.nll == rule.measured.nll
        name = " = ".join(rule.rules)
        said.append(
            f"It is the policy of the allocation rule {name}."
            if same
            else f"The best allocation rule, {name}, reaches {rule.measured}{where}."
        )
    dense = next((e.measured for e in entries if e.policy == "dense" and e.measured), None)
    return [*said, f"The dense model has {dense}{where}."] if dense else said


def _finite(nll: float) -> float:
    return nll if math.isfinite(nll) else math.inf


def _smaller(best: Entry, dense: Entry | None) -> list[str]:
    if dense and dense.bytes and best.bytes:
        return [
            f"The prunable matrices have {mebibytes(best.bytes)} instead of"
            f" {mebibytes(dense.bytes)} in 16 bits."
        ]
    if not (best.parameters and dense and dense.parameters):
        return []
    return [
        f"The pruned model is {percent(1 - best.parameters / dense.parameters)} smaller:"
        f" {millions(best.parameters)} instead of {millions(dense.parameters)} parameters."
    ]


def curve_headline(entries: Sequence[Entry]) -> list[str]:
    """Compares the agent of a dynamic search with uniform pruning, over all ratios.

    Args:
        entries: "uniform" and "PPF" at each ratio.
    """
    found = [e for e in entries if e.policy == "PPF" and e.measured]
    gains = [
        (change(e.measured.perplexity, even.perplexity), e, even)  # type: ignore[union-attr]
        for e in found
        if (even := uniform_at(e.ratio, entries))
    ]
    gains = [gain for gain in gains if math.isfinite(gain[0])]
    if not gains:
        return ["No perplexity of this search is finite."]
    mean = math.exp(sum(math.log1p(gain) for gain, *_ in gains) / len(gains)) - 1
    most, best, even = max(gains, key=lambda gain: abs(gain[0]))
    low, high = found[0].ratio, found[-1].ratio
    better = sum(gain < 0 for gain, *_ in gains)
    return [
        f"One agent for all pruning ratios from {percent(low)} to {percent(high)}: perplexity"
        f" {signed_percent(mean)} against uniform pruning, as the geometric mean of"
        f" {len(gains)} ratios.",
        f"It is better at {better} of {len(gains)} ratios. The largest difference is at"
        f" {percent(best.ratio)}: {best.measured} instead of {even} ({signed_percent(most)}).",
    ]


def evaluation_headline(evaluation: Evaluation) -> list[str]:
    """Compares the last model with uniform pruning and the dense model."""
    results = list(evaluation.results)
    best, found = results[-1], {result.name: result for result in results}
    even, dense = found.get("uniform"), found.get("dense")
    if dense is None and len(results) > 1 and results[0].ratio is None:
        dense = results[0]  # a folder without a policy
    other = even or dense if best is not dense else None
    said = [_scored(best, other, is_uniform=even is not None, rounded=evaluation.rounded)]
    if dense and dense is not best:
        if even:
            said.append(f"The dense model has {decimal(dense.perplexity)}.")
        said.append(_size_and_speed(best, dense))
    return said


def _scored(
    best: ModelResult, other: ModelResult | None, *, is_uniform: bool, rounded: bool
) -> str:
    saved = _removed(best.ratio, rounded)
    if other is None:
        return (
            f"{best.name} has a perplexity of {decimal(best.perplexity)} on the test part{saved}."
        )
    against = even_pruning(rounded) if is_uniform else other.name
    return (
        f"Perplexity {decimal(best.perplexity)} on the test part instead of"
        f" {decimal(other.perplexity)} for {against}"
        f"{_bracketed(change(best.perplexity, other.perplexity))}{saved}."
    )


def _size_and_speed(best: ModelResult, dense: ModelResult) -> str:
    less = 1 - best.bytes / dense.bytes
    parts = [f"{percent(abs(less))} {'smaller' if less >= 0 else 'larger'}"]
    for now, before in zip(best.speed, dense.speed, strict=False):
        parts.append(
            f"prefill {now.prefill / before.prefill:.2f} × and decode"
            f" {now.decode / before.decode:.2f} × as fast with a batch of {now.batch}"
        )
    # A folder without a policy is the dense model of a pruned one.
    known = dense.name == "dense" or best.ratio is not None
    return f"Against {'the dense model' if known else dense.name}: {'; '.join(parts)}."
