"""The model card of an exported folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ppf.export.front_matter import front_matter
from ppf.pruning import LivePruner
from ppf.space import Space

_CARD = Template("""\
---
$front
---
# $name, pruned by $ratio

Structured pruning: whole key/value heads (with their query heads) and FFN channels are removed.
The tensors are smaller, and layers differ in width. `policy.json` lists what each layer keeps.

## Perplexity of these weights
$measured_on

$table

## How to load
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
It needs transformers 5.20 or later. `trust_remote_code=True` runs two files of this folder:
`modeling_pruned.py` and `empty_block.py`.

## Provenance
$provenance
""")

_MEASURED = Template("""\
Measured in $dtype on $windows windows of $window tokens of the labelling part of $text. The first
$context tokens of each window are context and not scored. Compensation in this folder: $kept.
Perplexity is the exponential of the mean negative log-likelihood. The search has used this part of
the text; `evaluate.py path=FOLDER` measures on the test part.""")

_RECOVERED = Template("""\
## Recovery training
The weights in this folder were trained after pruning, on $tokens tokens of the training part of
$text in $minutes minutes (tune=$tune, loss=$loss, $precision). Measured on $windows windows of
$window tokens of its validation part:

| | nll | perplexity |
|---|---|---|
$rows

Recovered share of the nats that pruning had lost: $won_back.

""")
_OWN_RESULTS, _EARLIER = "## Perplexity of these weights", "## Before the recovery training"
_TRAINING = "## Recovery training"
_COMPENSATIONS = {
    "one_shot": "one-shot",
    "sequential": "re-estimated front to back",
    "adapters": "one-shot, with the adapters of a recovery at all ratios",
}


def model_card(pruner: LivePruner, policy: Mapping[str, Any]) -> str:
    """The model card in Markdown: what is known of the origin, sizes, perplexities, provenance.

    Args:
        policy: the contents of policy.json.
    """
    space, config = pruner.space, policy.get("config", {})
    exported = policy.get("exported")
    return _CARD.substitute(
        front=front_matter(pruner.lm.model, config),
        name=policy.get("model", "A language model"),
        ratio=_percent(_removed(space, pruner.kept) / space.total),
        measured_on=_measured_on(exported, policy) if exported else "It was not measured.",
        table=_table(pruner, policy),
        provenance="\n".join(_provenance(config)),
    )


def _measured_on(exported: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    kept = _COMPENSATIONS[exported["compensation"]]
    return _MEASURED.substitute(exported, text=policy["text"], kept=kept)


class _Row(NamedTuple):
    """A model in the card's table.

    Args:
        kept: units kept at each site.
        nll: as in policy.json; None: not measured.
        speed: one entry for each batch size.
    """

    name: str
    kept: Sequence[int]
    nll: Mapping[str, Any] | None
    speed: Sequence[Mapping[str, Any]] = ()


def _table(pruner: LivePruner, policy: Mapping[str, Any]) -> str:
    """Dense, uniform and the exported model: ratio, size, perplexity, and speed if known."""
    space, lm, rows = pruner.space, pruner.lm, list(_models(pruner, policy))
    here = lm.model.num_parameters()
    with pruner.at(space.dense.tolist()) as model:
        dense = model.num_parameters()
    batches = [entry["batch"] for entry in rows[0].speed]
    heads = ["", "pruning ratio", "parameters", "weights", "nats per token", "perplexity"]
    for batch in batches:
        heads += [f"{what}, tokens/s, batch {batch}" for what in ("prefill", "decode")]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        removed = _removed(space, row.kept)
        count = here if list(row.kept) == pruner.kept else dense - removed
        size = count * lm.dtype.itemsize / 2**20
        cells = [row.name, _percent(removed / space.total), f"{count:,}", f"{size:,.1f} MiB"]
        cells += [_decimal(row.nll[key]) if row.nll else "" for key in ("nll", "perplexity")]
        for entry in row.speed or [{}] * len(batches):
            cells += [f"{entry[what]:,.1f}" if entry else "" for what in ("prefill", "decode")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _models(pruner: LivePruner, policy: Mapping[str, Any]) -> Iterator[_Row]:
    exported = policy.get("exported") or {}
    speed, scores = exported.get("speed") or {}, exported.get("measured") or {}
    space = pruner.space
    yield _Row("dense", space.dense.tolist(), exported.get("dense"), speed.get("dense", ()))
    names, even = [site.name for site in space.sites], policy.get("uniform")
    if even and even["kept"].keys() == set(names):
        yield _Row("uniform, one-shot, by the search", space.policy(even["kept"]), even["measured"])
    for key, name in _COMPENSATIONS.items():
        if key in scores:
            here = key == exported["compensation"]
            shown = f"**{name}, in this folder**" if here else name
            yield _Row(shown, pruner.kept, scores[key], speed.get("pruned", ()) if here else ())
    if not scores:
        yield _Row("in this folder", pruner.kept, None)


def _removed(space: Space, kept: Sequence[int]) -> int:
    """Removed parameters."""
    return sum((site.units - k) * site.params for site, k in zip(space.sites, kept, strict=True))


def _percent(share: float) -> str:
    return f"{share:.1%}"


def recovered_card(card: str, policy: Mapping[str, Any]) -> str:
    """A pruned model's card, with a section on its recovery training before its own results.

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
    card = card.replace(_OWN_RESULTS, _EARLIER, 1)
    at = next((card.index(head) for head in (_TRAINING, _EARLIER) if head in card), len(card))
    return card[:at] + section + card[at:]


def _decimal(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _provenance(config: Mapping[str, Any]) -> Iterator[str]:
    """One line for each choice that the policy's config records."""
    for group, choice in config.items():
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
