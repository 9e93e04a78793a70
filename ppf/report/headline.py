"""The result of a run, in words."""

import math
from collections.abc import Sequence

from ppf.evaluation.results import Evaluation, ModelResult
from ppf.report.scores import (
    Entry,
    change,
    decimal,
    gain,
    millions,
    percent,
    signed_percent,
    uniform_at,
)


def search_headline(entries: Sequence[Entry]) -> list[str]:
    """Compares the policy found with uniform pruning, the best allocation rule and the dense model.

    Args:
        entries: measured policies, among them "PPF".
    """
    found = {entry.policy: entry for entry in entries}
    best = found["PPF"]
    return [
        _against_uniform(best, entries),
        *_on_selection(best),
        *_others(best, entries),
        *_smaller(best.parameters, found.get("dense")),
    ]


def _against_uniform(best: Entry, entries: Sequence[Entry]) -> str:
    even, measured = uniform_at(best.ratio, entries), best.measured
    assert measured
    if even is None or even.nll == measured.nll:
        return (
            f"No policy was found that is better than uniform pruning: perplexity"
            f" {decimal(measured.perplexity)} at a pruning ratio of {percent(best.ratio)}."
        )
    less = change(measured.perplexity, even.perplexity)
    return (
        f"Perplexity {decimal(measured.perplexity)} instead of {decimal(even.perplexity)} for"
        f" uniform pruning{_bracketed(less)}, at a pruning ratio of {percent(best.ratio)}."
    )


def _on_selection(best: Entry) -> list[str]:
    """The sentence on the windows that the search did not use, if the policy was measured there."""
    score, less = best.selection, gain(best)
    if score is None:
        return []
    error = "" if score.error is None else f" ± {decimal(score.error)}"
    beside = f", {_with_error(*less)} against uniform pruning" if less else ""
    return [f"On the selection part, whose windows the search did not use: {score}{error}{beside}."]


def _with_error(change: float, error: float) -> str:
    """For example "−18.1 ± 1.0 %"."""
    return f"{signed_percent(change).removesuffix(' %')} ± {percent(error)}"


def _bracketed(share: float) -> str:
    return f" ({signed_percent(share)})" if math.isfinite(share) else ""


def _others(best: Entry, entries: Sequence[Entry]) -> list[str]:
    """Sentences on the allocation rules and the dense model, if these were measured."""
    said = []
    rules = [e for e in entries if e.policy not in ("dense", "uniform", "PPF") and e.measured]
    if rules:
        rule = min(rules, key=lambda e: _finite(e.measured.nll))  # type: ignore[union-attr]
        same = best.measured and rule.measured and best.measured.nll == rule.measured.nll
        said.append(
            f"It is the policy of the allocation rule {rule.policy}."
            if same
            else f"The best allocation rule, {rule.policy}, reaches {rule.measured}."
        )
    dense = next((e.measured for e in entries if e.policy == "dense" and e.measured), None)
    return [*said, f"The dense model has {dense}."] if dense else said


def _finite(nll: float) -> float:
    return nll if math.isfinite(nll) else math.inf


def _smaller(parameters: int | None, dense: Entry | None) -> list[str]:
    if not (parameters and dense and dense.parameters):
        return []
    return [
        f"The pruned model is {percent(1 - parameters / dense.parameters)} smaller:"
        f" {millions(parameters)} instead of {millions(dense.parameters)} parameters."
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
    most, best, even = min(gains, key=lambda gain: gain[0])
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
    said = [_scored(best, even or dense if best is not dense else None, even is not None)]
    if dense and dense is not best:
        if even:
            said.append(f"The dense model has {decimal(dense.perplexity)}.")
        said.append(_size_and_speed(best, dense))
    return said


def _scored(best: ModelResult, other: ModelResult | None, is_uniform: bool) -> str:
    ratio = "" if best.ratio is None else f" at a pruning ratio of {percent(best.ratio)}"
    if other is None:
        return (
            f"{best.name} has a perplexity of {decimal(best.perplexity)} on the test part{ratio}."
        )
    against = "uniform pruning" if is_uniform else other.name
    return (
        f"Perplexity {decimal(best.perplexity)} on the test part instead of"
        f" {decimal(other.perplexity)} for {against}"
        f"{_bracketed(change(best.perplexity, other.perplexity))}{ratio}."
    )


def _size_and_speed(best: ModelResult, dense: ModelResult) -> str:
    parts = [f"{percent(1 - best.bytes / dense.bytes)} smaller"]
    for now, before in zip(best.speed, dense.speed, strict=False):
        parts.append(
            f"prefill {now.prefill / before.prefill:.2f} × and decode"
            f" {now.decode / before.decode:.2f} × as fast with a batch of {now.batch}"
        )
    return f"Against the dense model: {'; '.join(parts)}."
