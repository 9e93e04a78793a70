"""The model card of an exported model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ppf.export.front_matter import front_matter
from ppf.export.pruned import Pruned
from ppf.pruning.rounding import BLOCK_BYTES
from ppf.records.values import NumberFormat

_CARD = Template("""\
---
$front
---
# $name, $title

Structured pruning: whole key/value heads (with their query heads) and FFN channels are removed.
The tensors are smaller, and layers differ in width.
$rounded
## Perplexity of these weights
$measured_on

$table

$recovery## How to use
$use

## Provenance
$provenance
""")

_ROUNDED = """
The weights of these layers are also rounded to formats of GGUF files. `export=gguf` stores them in
4 to 8 bits; the share of bytes saved is that of such a file, compared with 16 bits. Other formats
store the rounded weights in 16 or 32 bits.
"""

_MEASURED = Template("""\
Measured in $dtype on $windows windows of $window tokens of the labelling part of $text. The first
$context tokens of each window are context and not scored. In this folder: $kept.
Perplexity is the exponential of the mean negative log-likelihood. The search has used this part of
the text; `ppf-evaluate` measures on the test part.""")

_CHOSEN_FROM = "one_shot", "sequential"
_CHOICE = Template("""\
Re-estimated weights are kept if their perplexity is lower on $where.
There it was $sequential, and $one_shot with one-shot compensation.""")
_DECIDED_ON = {
    "selection": "$windows other windows of the same documents",
    "labelling": "these windows",
}

_TRAINED_ON = """\
The training after pruning may have read documents of this part too; then
the perplexity of the trained weights is too low here."""

_ADAPTERS = Template(
    "The adapters were trained on $tokens tokens of the training part of $text in $minutes minutes."
)

_RECOVERED = Template("""\
## Recovery training
The weights in this folder were trained after pruning. The training read $tokens tokens of the
training part of $text in $minutes minutes ($how, $precision); the weights are those with the lowest
validation loss. Measured on $windows windows of $window tokens of the validation part:

| | nll | perplexity |
|---|---|---|
$rows

Recovered share of the nats that pruning had lost: $won_back.

""")
_COMPENSATIONS = {
    "one_shot": "one-shot",
    "sequential": "re-estimated front to back",
    "adapters": "one-shot, with the adapters of a recovery at all ratios",
    "recovered": "recovered",
}


class Form(NamedTuple):
    """What a card says of the format of the weights.

    Args:
        library: that loads the model, as the Hugging Face Hub names it.
        use: how to use the model, in Markdown.
        size: bytes of the weights in the folder.
        itemsize: bytes of a weight; None: the format mixes several.
        parameters: number of parameters of the model.
        remark: on the measurements, as a sentence in Markdown; may be empty.
    """

    library: str
    use: str
    size: int
    itemsize: int | None
    parameters: int
    remark: str = ""


def write_card(folder: Path, model: Pruned, policy: Mapping[str, Any], form: Form) -> None:
    """Writes README.md: what is known of the origin, sizes, perplexities, provenance.

    Args:
        policy: the contents of policy.json.
    """
    config, exported = policy.get("config", {}), policy.get("exported")
    achieved, recovered = policy["ratio"]["achieved"], policy.get("recovered")
    rounded = policy.get("types")
    saved = f"pruned and rounded: {_percent(achieved)} of the bytes saved"
    told = _measured_on(exported, policy) if exported else "It was not measured."
    card = _CARD.substitute(
        front=front_matter(model.lm.model, config, form.library),
        name=policy.get("model", "A language model"),
        title=saved if rounded else f"pruned by {_percent(achieved)}",
        rounded=_ROUNDED if rounded else "",
        measured_on="\n".join(filter(None, (told, form.remark))),
        table=_table(model, policy, form),
        recovery=_recovery(recovered) if recovered else "",
        use=form.use,
        provenance="\n".join(_provenance(config)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _measured_on(exported: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    kept = exported["compensation"]
    told = _MEASURED.substitute(exported, text=policy["text"], kept=_COMPENSATIONS[kept])
    trained = [_TRAINED_ON] if kept in ("adapters", "recovered") else []
    if choice := exported.get("choice"):
        scores = {name: _decimal(choice[name]["perplexity"]) for name in _CHOSEN_FROM}
        where = Template(_DECIDED_ON[choice["part"]]).substitute(choice)
        told += "\n" + _CHOICE.substitute(scores, where=where)
    if adapters := exported.get("adapters"):
        trained.append(_ADAPTERS.substitute(adapters))
    return " ".join([told, *trained])


class _Row(NamedTuple):
    """A model in the card's table.

    Args:
        nll: as in policy.json; None: not measured.
        policy: with units kept at each site, and formats if it has any; None: the dense model.
        here: whether these are the weights in the folder.
        speed: one entry for each batch size.
    """

    name: str
    nll: Mapping[str, Any] | None
    policy: Mapping[str, Any] | None
    here: bool = False
    speed: Sequence[Mapping[str, Any]] = ()


def _table(model: Pruned, policy: Mapping[str, Any], form: Form) -> str:
    """Dense, uniform and the exported model: size, perplexity, and speed if known."""
    rows, units = list(_rows(policy)), policy.get("units", {})
    batches = [entry["batch"] for entry in rows[0].speed]
    ratio = "bytes saved" if policy.get("types") else "parameters removed"
    heads = ["", ratio, "parameters", "weights", "nats per token", "perplexity"]
    for batch in batches:
        heads += [f"{what}, tokens/s, batch {batch}" for what in ("prefill", "decode")]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        kept = row.policy["kept"] if row.policy else units
        types = row.policy.get("types") if row.policy else None
        count = form.parameters if row.here else model.parameters(units, kept)
        share = (
            policy["ratio"]["achieved"]
            if row.policy is policy
            else _saved(model, units, kept, types or {})
        )
        size = form.size if row.here else form.itemsize and count * form.itemsize
        shown = f"{size / 2**20:,.1f} MiB" if size else ""
        cells = [row.name, _percent(share), f"{count:,}", shown]
        cells += [_decimal(row.nll[key]) if row.nll else "" for key in ("nll", "perplexity")]
        for entry in row.speed or [{}] * len(batches):
            cells += [f"{entry[what]:,.1f}" if entry else "" for what in ("prefill", "decode")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(policy: Mapping[str, Any]) -> Iterator[_Row]:
    exported = policy.get("exported") or {}
    speed, scores = exported.get("speed") or {}, exported.get("measured") or {}
    yield _Row("dense", exported.get("dense"), None, speed=speed.get("dense", ()))
    if even := policy.get("uniform"):
        yield _Row("uniform, one-shot, by the search", even["measured"], even)
    before = ", before recovery" if "recovered" in scores else ""
    for key, name in _COMPENSATIONS.items():
        if key in scores:
            here = key == exported["compensation"]
            shown = f"**{name}, in this folder**" if here else name + before
            yield _Row(shown, scores[key], policy, here, speed.get("pruned", ()) if here else ())
    if not scores:
        yield _Row("in this folder", None, policy, here=True)


def _saved(
    model: Pruned,
    units: Mapping[str, int],
    kept: Mapping[str, int],
    types: Mapping[str, NumberFormat],
) -> float:
    """The share of parameters that a policy removes, or of bytes that it saves."""
    weights = {name: params * units[name] for name, params in model.unit_parameters(units).items()}
    left = sum(
        weights[name] * kept[name] / units[name] * BLOCK_BYTES[types.get(name, "f16")]
        for name in weights
    )
    return 1 - left / (sum(weights.values()) * BLOCK_BYTES["f16"])


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _recovery(found: Mapping[str, Any]) -> str:
    """The section on the recovery training.

    Args:
        found: the entry `recovered` of policy.json.
    """
    rows = [
        f"| {name} | {_decimal(found[name]['nll'])} | {_decimal(found[name]['perplexity'])} |"
        for name in ("dense", "pruned", "recovered")
    ]
    won, given = found["won_back"], [key for key in ("tune", "loss") if found[key]]
    how = ", ".join(f"{key}={'+'.join(found[key])}" for key in given)
    numbers = {"tokens": f"{found['tokens']:,}", "minutes": f"{found['minutes']:.1f}"}
    shown = "none were lost" if won is None else f"{won:.1%}"
    return _RECOVERED.substitute(found, **numbers, how=how, rows="\n".join(rows), won_back=shown)


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
