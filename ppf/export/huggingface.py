"""Exports a pruned model as a Hugging Face folder, which transformers loads without PPF.

`ppf.export.stock` has removed empty layers before. If all layers that are left are equal, the model
is of the family's own class, and its folder contains no code. All others are written as follows.

transformers' own `per_layer_config` holds the widths. It overrides `num_key_value_heads`,
`num_attention_heads`, and `intermediate_size` or `num_local_experts`, layer by layer; the global
values stay those of the dense model. transformers 5.24 and vLLM use it to size KV caches, but not
to build layers. vLLM needs a KV cache in every layer, so a layer without attention is listed with
one KV group.

So the folder contains `modeling_pruned.py`, the same file for all families. It builds the dense
model and narrows its projections. `pruned_blocks` in the config lists these projections, how many
rows or columns one atom has in each, and the layers that lack the block (`empty`). Mixtures of
experts have the names and the layout of `experts.py`, which the folder then contains too.
"""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ppf.export import modeling_pruned
from ppf.export.base import Exporter
from ppf.export.card import write_card
from ppf.export.files import write_folder
from ppf.export.pruned import Pruned
from ppf.llm import Adapter, Coupling, experts
from ppf.llm.loading import dtype_name

_MODELING = Path(modeling_pruned.__file__)
_EMPTY_BLOCK = Path(__file__).parents[1] / "pruning" / "empty_block.py"
_EXPERTS = Path(experts.__file__)
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""
_CHAT = """
```python
messages = [{"role": "user", "content": "Who are you?"}]
given = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
inputs = tokenizer.apply_chat_template(messages, **given)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```
"""
_CODE_RUNS = """\
It needs transformers 5.20 or later. `trust_remote_code=True` runs these files of this folder:
{}."""
_USE_PLAIN = f"""\
{_USE.replace(", trust_remote_code=True", "")}\
It is a model of the usual class, so every program that knows the dense model loads it."""


class HuggingFace(Exporter):
    """Writes a Hugging Face folder.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it without PPF.
    """

    def write(self, model: Pruned, folder: Path, policy: Mapping[str, Any]) -> Path:
        lm = model.lm.model
        named = [*lm.named_parameters(), *lm.named_buffers()]
        once = {name for name, _ in named}  # of tied parameters
        tensors = {name: tensor for name, tensor in lm.state_dict().items() if name in once}
        if model.plain:
            config, code, use = copy.deepcopy(lm.config), {}, _USE_PLAIN
            config.dtype = dtype_name(model.lm.dtype)
            tensors = model.lm.adapter.published(lm, tensors)
        else:
            config, code = pruned_config(model), _code(model)
            use = _USE + _CODE_RUNS.format(", ".join(f"`{name}`" for name in code))
        write_folder(folder, model, policy, config, tensors, code)
        if model.lm.tokenizer.chat_template:
            use += _CHAT
        write_card(folder, model, policy, library="transformers", use=use)
        return folder


def pruned_config(model: Pruned, biased: Collection[nn.Linear] = ()) -> PreTrainedConfig:
    """The dense model's config with the widths of the policy; `biased` consumers get biases too."""
    dense, adapter = model.lm.model.config, model.lm.adapter
    blocks = describe_blocks(adapter, adapter.couplings(model.dense))
    widths: dict[int, dict[str, int]] = {}
    for coupling, (atoms, queries) in zip(model.couplings, model.shapes, strict=True):
        listed = listed_atoms(coupling.kind, atoms)
        own = adapter.widths(coupling.kind, listed, queries)
        widths.setdefault(coupling.layer, {}).update(own)
        if coupling.consumer.bias is not None or coupling.consumer in biased:
            blocks[coupling.kind]["biases"].append(coupling.layer)
        if not atoms:
            blocks[coupling.kind]["empty"].append(coupling.layer)
    config: Any = copy.deepcopy(dense)
    # Some configs omit head_dim, and a pruned layer's number of heads does not determine it.
    config.head_dim = model.head
    config.pruned_blocks = blocks
    config.architectures = ["PrunedForCausalLM"]
    config.auto_map = {
        "AutoConfig": f"{_MODELING.stem}.PrunedConfig",
        "AutoModel": f"{_MODELING.stem}.PrunedModel",
        "AutoModelForCausalLM": f"{_MODELING.stem}.PrunedForCausalLM",
    }
    config.dtype = dtype_name(model.lm.dtype)
    # Some families' configs validate themselves with the dense model's number of heads.
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = widths
    return config


def _code(model: Pruned) -> dict[str, str]:
    """The modelling code, with the family's classes as its bases and no import of PPF."""
    family, base = type(model.dense).__name__, type(model.dense.base_model).__name__
    code = _MODELING.read_text(encoding="utf-8")
    code = code.replace("import LlamaForCausalLM as Base", f"import {family} as Base")
    code = code.replace("import LlamaModel as BaseModel", f"import {base} as BaseModel")
    code = code.replace("from ppf.pruning.empty_block import", "from .empty_block import")
    files = [_EMPTY_BLOCK]
    if any(coupling.kind == "experts" for coupling in model.couplings):
        files.append(_EXPERTS)
        code = code.replace("from ppf.llm.experts import", "from .experts import")
    else:
        code = code.replace("from ppf.llm.experts import with_projections\n", "")
    return {_MODELING.name: code} | {x.name: x.read_text(encoding="utf-8") for x in files}


def listed_atoms(kind: str, atoms: int) -> int:
    """Atoms of a block as `per_layer_config` lists them: one KV group for no attention."""
    return max(atoms, 1) if kind == "attention" else atoms


def describe_blocks(adapter: Adapter, couplings: list[Coupling]) -> dict[str, dict[str, Any]]:
    """Describes the blocks of a dense model for `pruned_blocks`.

    Returns:
        Kind of block → names of its projections within a decoder layer, and the rows or columns
        that one atom has in them; which of these belong to its query heads, and their number.
    """
    counted_by = {
        "attention": adapter.kv_heads,
        "mlp": adapter.channels,
        "experts": adapter.experts,
    }
    blocks: dict[str, dict[str, Any]] = {}
    for coupling in couplings:
        names = {module: name for name, module in coupling.parent.named_modules()}
        described = {
            "counted_by": counted_by[coupling.kind],
            "name": coupling.attribute,
            "producers": {names[p.linear]: p.rows for p in coupling.producers},
            "consumer": names[coupling.consumer],
            "by_query": [names[p.linear] for p in coupling.producers if p.by_query],
            "columns": coupling.columns,
            "queries": coupling.queries,
            "ratio": coupling.ratio,
            "bypassed": list(coupling.bypassed),
            "heads": coupling.heads,
            "biases": [],
            "empty": [],
        }
        blocks.setdefault(coupling.kind, described)  # all of a kind have the same form
    return blocks
