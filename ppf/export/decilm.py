"""Exports a pruned model as a `DeciLMForCausalLM`, for which vLLM has its own class.

In this format every layer has an FFN of its own width, or none, and the dense model's attention, or
none. vLLM computes it with `vllm/model_executor/models/nemotron_nas.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from ppf.errors import PPFError
from ppf.export import configuration_decilm
from ppf.export.base import Exporter
from ppf.export.card import write_card
from ppf.export.configuration_decilm import DeciLMConfig
from ppf.export.files import write_folder
from ppf.export.pruned import Pruned
from ppf.llm.loading import dtype_name

_FAMILIES = ("llama", "mistral", "qwen2")
_CODE = Path(configuration_decilm.__file__)
_USE = "`vllm serve FOLDER --trust-remote-code` runs `configuration_decilm.py` of this folder."


class DeciLM(Exporter):
    """Writes a folder for vLLM."""

    def check(self, model: Pruned) -> None:
        family = model.lm.model.config.model_type
        if family not in _FAMILIES:
            raise PPFError(
                f"export=decilm supports {', '.join(_FAMILIES)}, not {family}: give"
                " export=huggingface."
            )
        for coupling, kept, whole in zip(model.couplings, model.shapes, model.whole, strict=True):
            atoms, queries = kept
            needed = atoms > 0 or coupling.layer == 0
            if coupling.kind == "attention" and needed and kept != whole:
                raise PPFError(
                    "export=decilm keeps or removes whole attention blocks, and keeps that of the"
                    f" first layer, but {coupling.name} keeps {atoms} KV groups of {queries} query"
                    f" heads, not {whole[0]} of {whole[1]}: search with space=mlp, or give"
                    " export=huggingface."
                )

    def write(self, model: Pruned, folder: Path, policy: Mapping[str, Any]) -> Path:
        self.check(model)
        tensors = _tensors(model)
        code = {_CODE.name: _CODE.read_text(encoding="utf-8")}
        write_folder(folder, model, policy, _config(model, set(tensors)), tensors, code)
        write_card(folder, model, policy, library="vllm", use=_USE)
        return folder


def _config(model: Pruned, names: set[str]) -> DeciLMConfig:
    dense: Any = model.lm.model.config
    given = dense.to_dict()
    config = DeciLMConfig(
        **{key: given[key] for key in LlamaConfig.__dataclass_fields__ if key in given}
        | {"block_configs": _block_configs(model)}
    )
    # The format has no sliding window. Within one, full attention gives the same result.
    window = getattr(dense, "sliding_window", None) or dense.max_position_embeddings
    config.max_position_embeddings = min(window, dense.max_position_embeddings)
    config.attention_bias = any(name.endswith(".o_proj.bias") for name in names)
    config.mlp_bias = any(name.endswith(".down_proj.bias") for name in names)
    config.architectures = ["DeciLMForCausalLM"]
    config.auto_map = {"AutoConfig": f"{_CODE.stem}.{DeciLMConfig.__name__}"}
    config.dtype = dtype_name(model.lm.dtype)
    return config


def _block_configs(model: Pruned) -> list[dict[str, Any]]:
    config: Any = model.lm.model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    layers: list[dict[str, Any]] = [{} for _ in range(config.num_hidden_layers)]
    for coupling, (atoms, _) in zip(model.couplings, model.shapes, strict=True):
        layer = layers[coupling.layer]
        entry: dict[str, Any] = {"no_op": not atoms, "replace_with_linear": False}
        if coupling.kind == "attention":
            layer["attention"] = entry | {"n_heads_in_group": queries if atoms else None}
        else:
            layer["ffn"] = entry | {"intermediate_size": atoms or None}
    return layers


def _tensors(model: Pruned) -> dict[str, Tensor]:
    """All tensors by name; if one projection of a kind of block has a bias, all have."""
    tensors = dict(model.tensors(model.shapes)) | _consumer_biases(model)
    for kind in ("self_attn", "mlp"):
        biased = any(f".{kind}." in name and name.endswith(".bias") for name in tensors)
        for name in [n for n in tensors if biased and f".{kind}." in n and n.endswith("weight")]:
            bias = name.removesuffix("weight") + "bias"
            tensors.setdefault(bias, tensors[name].new_zeros(len(tensors[name])))
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _consumer_biases(model: Pruned) -> dict[str, Tensor]:
    """The consumers' biases. That of a removed block goes to the block before it.

    Nothing reads the residual stream between the two, so the sum is the same.
    """
    biases: dict[str, Tensor] = {}
    place = ""
    for coupling, (atoms, _) in zip(model.couplings, model.shapes, strict=True):
        if atoms:
            names = {m: name for name, m in coupling.parent.named_modules()}
            place = f"model.layers.{coupling.layer}.{names[coupling.consumer]}.bias"
        if (bias := coupling.consumer.bias) is not None:
            before = biases.get(place)
            biases[place] = bias if before is None else before + bias.to(before.device)
    return biases
