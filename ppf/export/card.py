"""The model card of an exported model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from transformers import PreTrainedModel

from ppf.evaluation.size import parameters
from ppf.export.pruned import Pruned
from ppf.llm.sources import small_file

_CARD = """\
---
{metadata}
---
# {name}, {smaller:.1%} fewer parameters

The model has {layers} layers and {count:,} parameters instead of {dense:,}. {worse}

PPF removed {share:.1%} of the {unit} of attention and FFN blocks: attention heads, and FFN channels
or experts. `policy.json` lists what each layer keeps.

## How to use
{use}

## Perplexity
{measured}
"""
_NAMES = {
    "one_shot": "one-shot compensation",
    "sequential": "sequential compensation",
    "adapters": "with the adapters of a recovery",
    "recovered": "recovered",
}
_COPIED = ("base_model", "license", "license_name", "license_link", "language", "datasets")


def write_card(
    folder: Path, model: Pruned, policy: Mapping[str, Any], *, library: str, use: str
) -> None:
    """Writes README.md.

    Args:
        policy: the contents of policy.json; empty: the model is dense, and gets no card.
        library: that loads the model, as the Hugging Face Hub names it.
        use: how to use the model, in Markdown.
    """
    if not policy:
        return
    config = policy.get("config", {}).get("model", {})
    count, dense = parameters(model.lm.model), _dense_parameters(model, policy)
    text = _CARD.format(
        metadata=metadata(model.lm.model, config, library).to_yaml(),
        name=policy.get("model", "A language model"),
        share=policy["ratio"]["achieved"],
        unit="bytes" if policy.get("types") else "parameters",
        layers=model.lm.model.config.num_hidden_layers,
        count=count,
        dense=dense,
        smaller=1 - count / dense,
        worse=_worse(policy),
        use=use,
        measured="\n\n".join(_measured(policy)) or "It was not measured.",
    )
    ModelCard(text).save(folder / "README.md")


def _dense_parameters(model: Pruned, policy: Mapping[str, Any]) -> int:
    """Parameters of the dense model; the config may have fewer layers, or pruned widths."""
    removed = policy["ratio"].get("of_all_parameters")
    if removed is None:
        return parameters(model.dense)
    return round(parameters(model.lm.model) / (1 - removed))


def _worse(policy: Mapping[str, Any]) -> str:
    """How much higher the perplexity is than the dense model's."""
    if recovered := policy.get("recovered"):
        dense, own = recovered["dense"], recovered["recovered"]
        on = f"{_windows(recovered | {'part': 'validation'})}, {recovered['text']}"
    elif exported := policy.get("exported"):
        dense, own = exported.get("dense"), exported["measured"][exported["compensation"]]
        on = f"{_windows(exported)}, {policy['text']}"
    else:
        return "Its perplexity was not measured."
    if not (dense and dense["perplexity"] and own["perplexity"]):
        return f"Its perplexity is {_decimal(own['perplexity'])} ({on})."
    change = own["perplexity"] / dense["perplexity"] - 1
    return (
        f"Its perplexity is {_decimal(own['perplexity'])}, {change:+.1%} against the dense model's"
        f" {_decimal(dense['perplexity'])} ({on})."
    )


def _measured(policy: Mapping[str, Any]) -> Iterator[str]:
    """A table of perplexities, and how they were measured."""
    exported, recovered = policy.get("exported") or {}, policy.get("recovered") or {}
    rows: list[tuple[str, str, Mapping[str, Any] | None]] = []
    if exported:
        part = _windows(exported)
        rows.append(("dense", part, exported.get("dense")))
        uniform = (policy.get("uniform") or {}).get("measured")
        rows.append(("uniform pruning, by the search", "labelling part", uniform))
        rows += [(_NAMES[name], part, score) for name, score in exported["measured"].items()]
        if choice := exported.get("choice"):
            rows += [(_NAMES[x], _windows(choice), choice[x]) for x in ("one_shot", "sequential")]
    if recovered:
        part = _windows(recovered | {"part": "validation"})
        rows += [(name, part, recovered[name]) for name in ("dense", "pruned", "recovered")]
    if rows:
        lines = ["| model | measured on | perplexity | nats per token |", "|---|---|---|---|"]
        for name, on, score in rows:
            if score:
                perplexity, nll = _decimal(score["perplexity"]), _decimal(score["nll"])
                lines.append(f"| {name} | {on} | {perplexity} | {nll} |")
        yield "\n".join(lines)
    if exported:
        yield (
            f"In this folder: {_NAMES[exported['compensation']]}. Measured in {exported['dtype']}"
            f" on {policy['text']}; the search has used its labelling part too, and `ppf-evaluate`"
            " measures on the test part."
        )
    if trained := recovered or exported.get("adapters"):
        yield (
            f"After pruning, the weights were trained on {trained['tokens']:,} tokens of"
            f" {trained['text']} in {trained['minutes']:.1f} minutes, perhaps of documents of the"
            " labelling part too."
        )


def _windows(measured: Mapping[str, Any]) -> str:
    of = f" of {measured['window']} tokens" if "window" in measured else ""
    return f"{measured['part']} part, {measured['windows']} windows{of}"


def _decimal(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def metadata(model: PreTrainedModel, config: Mapping[str, Any], library: str) -> ModelCardData:
    """What is known of the dense model: from its own card, unless the policy's config says more.

    Args:
        model: the model; its name is the folder or the hub id that it was loaded from.
        config: section `model` of policy.json's config.
        library: as for `write_card`.
    """
    source = str(model.name_or_path)
    own = _own_card(source, (config.get("source") or {}).get("revision"))
    if not Path(source).is_dir():
        own["base_model"] = source
    elif not Path(source, "policy.json").is_file():  # unlike the cards that PPF wrote
        own.pop("base_model", None)
    if not (config.get("path") and config.get("source")):  # the folder may hold another model
        own |= {key: value for key, value in (config.get("card") or {}).items() if value}
    known = {key: own[key] for key in _COPIED if own.get(key)}
    return ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=["pruned", "structured-pruning"],
        metrics=["perplexity"],
        **known,
    )


def _own_card(source: str, revision: str | None) -> dict[str, Any]:
    """The metadata of the README.md in a folder or a hub repository; empty if it has none."""
    folder = Path(source)
    try:
        local = folder.is_dir()
        file = folder / "README.md" if local else small_file(source, "README.md", revision)
        return (metadata_load(file) if file.is_file() else None) or {}
    except Exception:  # the hub cannot be reached, or any text stands at the top of the README
        return {}
