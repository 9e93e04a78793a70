"""The model card of an exported folder."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from ppf.pruning import LivePruner

_STRUCTURE = ("format", "kept", "units", "signatures", "config", "exported", "recovered")

_CARD = Template("""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [pruned, structured-pruning]
---
# $name, pruned by $ratio

Structured pruning: whole key/value heads (with their query heads) and FFN channels are removed.
The tensors are smaller, and layers differ in width. `policy.json` lists what each layer keeps.

| | dense | pruned |
|---|---|---|
| parameters | $dense | $pruned |
| prunable parameters | $prunable | $left |

Pruning ratio: $ratio of the prunable parameters, $share of all.

$scored## Results of the search
With one-shot compensation. Perplexity is the exponential of the mean negative log-likelihood (nll,
nats per token).

| | value | source |
|---|---|---|
$numbers

## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
It needs transformers 5.20 or later. `trust_remote_code=True` runs two files of this folder:
`modeling_pruned.py` and `empty_block.py`. While loading, transformers reports that it reads widths
from a heterogeneous config; this is expected.

## Provenance
$provenance
""")


_SCORED = Template("""\
## Perplexity of these weights
Measured in $dtype on $windows windows of $window tokens of the labelling part of $text. The first
$context tokens of each window are context and not scored. Compensation in this folder: $kept.

| compensation | nll | perplexity |
|---|---|---|
$rows

""")

_RECOVERED = Template("""\
## Recovery training
The weights in this folder were trained after pruning, on $tokens tokens of the training part of
$text in $minutes minutes (tune=$tune, loss=$loss, $precision). Measured on $windows windows of
$window tokens of its validation part:

| | nll | perplexity |
|---|---|---|
$rows

Share of the lost nats that were won back: $won_back. The sections below tell what was known before.

""")
_FIRST_RESULTS = re.compile(
    r"^## (Perplexity of these weights|Results of the search)$", re.MULTILINE
)

_COMPENSATIONS = {"one_shot": "one-shot", "sequential": "re-estimated front to back"}


def model_card(pruner: LivePruner, policy: Mapping[str, Any]) -> str:
    """The model card in Markdown: removed parameters, perplexities and provenance.

    Args:
        policy: the contents of policy.json.
    """
    space, kept = pruner.space, pruner.kept
    with pruner.at(space.dense.tolist()) as model:
        dense = model.num_parameters()
    pruned = pruner.lm.model.num_parameters()
    removed = sum((site.units - k) * site.params for site, k in zip(space.sites, kept, strict=True))
    return _CARD.substitute(
        name=policy.get("model", "A language model"),
        ratio=f"{removed / space.total:.1%}",
        share=f"{1 - pruned / dense:.1%}",
        dense=f"{dense:,}",
        pruned=f"{pruned:,}",
        prunable=f"{space.total:,}",
        left=f"{space.total - removed:,}",
        scored=_scored(policy),
        numbers="\n".join(_rows(policy)),
        provenance="\n".join(_provenance(policy)),
    )


def recovered_card(card: str, policy: Mapping[str, Any]) -> str:
    """A pruned model's card with a section on its recovery training, in front of other results.

    Args:
        policy: the contents of policy.json, with the entry `recovered`.
    """
    found = policy["recovered"]
    rows = [
        f"| {name} | {_decimal(found[name]['nll'])} | {_decimal(found[name]['perplexity'])} |"
        for name in ("dense", "pruned", "recovered")
    ]
    won, given = found["won_back"], {key: "+".join(found[key]) for key in ("tune", "loss")}
    numbers = {"tokens": f"{found['tokens']:,}", "minutes": f"{found['minutes']:.1f}"}
    shown = "none were lost" if won is None else f"{won:.1%}"
    section = _RECOVERED.substitute(found, **given, **numbers, rows="\n".join(rows), won_back=shown)
    place = _FIRST_RESULTS.search(card)
    at = place.start() if place else len(card)
    return card[:at] + section + card[at:]


def _scored(policy: Mapping[str, Any]) -> str:
    """The section on the exported weights' perplexity; empty if it was not measured."""
    if not (exported := policy.get("exported")):
        return ""
    rows = [
        f"| {name} | {_decimal(found['nll'])} | {_decimal(found['perplexity'])} |"
        for key, name in _COMPENSATIONS.items()
        if (found := exported["measured"].get(key))
    ]
    kept = _COMPENSATIONS[exported["compensation"]]
    return _SCORED.substitute(exported, text=policy["text"], kept=kept, rows="\n".join(rows))


def _decimal(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _rows(policy: Mapping[str, Any]) -> Iterator[str]:
    """One table row for each number in the policy."""
    for key, value in policy.items():
        if key not in _STRUCTURE:
            yield from (
                f"| {name} | {number} | {_known(name)} |" for name, number in _flat(key, value)
            )


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The numbers in a value, each with its dotted name; a list of numbers is one row."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}", part)
    elif isinstance(value, (list, tuple)) and all(isinstance(v, float) for v in value):
        yield name, " – ".join(f"{v:.4g}" for v in value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, f"{value:.4g}"


def _known(name: str) -> str:
    """How a number is known, by its dotted name."""
    return next((how for how in ("predicted", "measured") if how in name), "exact")


def _provenance(policy: Mapping[str, Any]) -> Iterator[str]:
    """One line for each choice that the policy's config records."""
    for group, choice in policy.get("config", {}).items():
        if origin := _origin(choice):
            yield f"- {group}: {origin}"


def _origin(choice: Mapping[str, Any]) -> str:
    """The name or class of a choice, with its source; empty if it has neither name nor class."""
    if choice.get("path"):
        return Path(choice["path"]).name
    name = choice.get("name") or choice.get("_target_", "").rpartition(".")[2]
    source = choice.get("source") or {}
    known = ("repository", "requirement", "path", "_target_")
    place = next((source[key] for key in known if source.get(key)), None)
    return f"{name} ({place})" if place else name
