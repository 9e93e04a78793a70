"""Random checkpoints of all supported families, and reference implementations of pruning."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ppf.llm import LanguageModel, adapter_for
from ppf.llm.sources import byte_tokenizer
from ppf.pruning import Bank, Compensation, LivePruner, Statistics
from ppf.pruning.bank import widths
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.importance import RandomOrder
from ppf.pruning.order import Order, ordered, orders_of
from ppf.space import Space, build_space
from tests.observing import collect_statistics, score_atoms

CHANNEL_MULTIPLE = 16
_SMALL = {"vocab_size": 257, "num_hidden_layers": 3, "bos_token_id": 0, "eos_token_id": 0}


def sizes(
    hidden: int, heads: int, ffn: int, groups: int | None = None, *, tied: bool = False
) -> dict[str, Any]:
    """The keys of a config that all families have; OPT has another name for the FFN's width."""
    named = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": ffn}
    grouped = {"num_key_value_heads": groups} if groups else {}
    return {**_SMALL, **named, **grouped, "tie_word_embeddings": tied}


def _opt(hidden: int, heads: int, ffn: int, *, tied: bool = False, **more: Any) -> OPTConfig:
    given = sizes(hidden, heads, ffn, tied=tied)
    return OPTConfig(ffn_dim=given.pop("intermediate_size"), **given, **more)


_LOCAL = {"sliding_window": 8}
CHECKPOINTS: dict[str, PreTrainedConfig] = {
    "llama-32-heads-untied": LlamaConfig(**sizes(128, 32, 96)),
    "llama-groups-of-3-tied": LlamaConfig(**sizes(96, 6, 128, 2, tied=True)),
    "llama-biases": LlamaConfig(
        **sizes(72, 9, 80, 3, tied=True), attention_bias=True, mlp_bias=True
    ),
    "llama-wide-heads": LlamaConfig(**sizes(64, 4, 96, 4), head_dim=24),
    "mistral-sliding-window": MistralConfig(**sizes(96, 6, 112, 2), **_LOCAL),
    "qwen2-groups-of-7-local-layers-tied": Qwen2Config(
        **sizes(112, 14, 96, 2, tied=True), **_LOCAL, use_sliding_window=True, max_window_layers=1
    ),
    "qwen3-32-heads-untied": Qwen3Config(**sizes(64, 32, 96, 8), head_dim=8),
    "qwen3-groups-of-2-tied": Qwen3Config(**sizes(96, 4, 128, 2, tied=True), head_dim=32),
    "qwen3-moe-a-dense-layer-tied": Qwen3MoeConfig(
        **sizes(64, 8, 96, 4, tied=True),
        head_dim=16,
        mlp_only_layers=[1],
        moe_intermediate_size=24,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=False,
    ),
    "mixtral-untied": MixtralConfig(
        **sizes(96, 6, 40, 2), num_local_experts=5, num_experts_per_tok=2
    ),
    "olmoe-experts-only": OlmoeConfig(**sizes(64, 4, 24, 2), num_experts=6, num_experts_per_tok=2),
    "gpt-oss-experts-only": GptOssConfig(
        **sizes(64, 4, 24, 2), **_LOCAL, head_dim=16, num_local_experts=6, num_experts_per_tok=3
    ),
    "gemma3-one-kv-head-tied": Gemma3TextConfig(
        **sizes(64, 4, 96, 1, tied=True),
        **_LOCAL,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window_pattern=2,
    ),
    "gemma3-groups-of-3-capped-logits-untied": Gemma3TextConfig(
        **sizes(96, 6, 80, 2),
        **_LOCAL,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window_pattern=3,
        final_logit_softcapping=2.0,
    ),
    "opt-32-heads-tied": _opt(128, 32, 96, tied=True),
    "opt-projected-embeddings-norms-last": _opt(
        64, 4, 80, tied=True, word_embed_proj_dim=48, do_layer_norm_before=False
    ),
    "opt-no-biases-untied": _opt(72, 3, 112, enable_bias=False),
    "gpt-neox-32-heads-untied": GPTNeoXConfig(**sizes(256, 32, 96)),
    "gpt-neox-sequential-no-biases-tied": GPTNeoXConfig(
        **sizes(60, 5, 128, tied=True),
        rotary_pct=1.0,
        use_parallel_residual=False,
        attention_bias=False,
    ),
}
_ONE_OF_EACH = (
    *("llama-biases", "mistral-sliding-window", "qwen3-32-heads-untied", "mixtral-untied"),
    *("gemma3-one-kv-head-tied", "opt-32-heads-tied", "gpt-neox-sequential-no-biases-tied"),
)
FAMILIES = {name: CHECKPOINTS[name] for name in _ONE_OF_EACH}
"""One of each family, for tests in which numbers of heads and tied weights play no part."""


def each(argument: str, names: Iterable[str] = CHECKPOINTS) -> pytest.MarkDecorator:
    """Parametrises a test over checkpoints; it is slow but for one of each family.

    Args:
        argument: of the test: "name", or "config" for the config itself.
    """
    cases = [
        pytest.param(
            name if argument == "name" else CHECKPOINTS[name],
            id=name,
            marks=() if name in FAMILIES else pytest.mark.slow,
        )
        for name in names
    ]
    return pytest.mark.parametrize(argument, cases)


def random_model(config: PreTrainedConfig) -> LanguageModel:
    """A model with random weights, biases and norms, as `load` returns it."""
    model, adapter = random_weights(config), adapter_for(config)
    adapter.with_projections(model)
    return LanguageModel(model, byte_tokenizer(), adapter)


def random_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The same model, as transformers returns it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer, but with its end-of-text token before every text, as for OPT."""
    tokenizer = byte_tokenizer()
    name, token = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, token)]
    )
    return tokenizer


def random_windows() -> Tensor:
    return torch.randint(0, 257, (4, 24), generator=torch.Generator().manual_seed(1))


def width_space(
    lm: LanguageModel,
    channel_multiple: int = CHANNEL_MULTIPLE,
    *,
    whole_sites: bool = False,
    orders: list[Order] | None = None,
) -> Space:
    """The space of a model; with orders of query heads, these are units."""
    return build_space(
        ordered(lm, orders) if orders else [coupling.prunable for coupling in lm.couplings],
        name="width",
        kinds=["attention", "mlp"],
        channel_multiple=channel_multiple,
        whole_sites=whole_sites,
        query_heads=any(order.chain for order in orders or []),
    )


def calibrated(lm: LanguageModel, *, query_heads: bool = False) -> tuple[Statistics, list[Order]]:
    """Statistics and a random order; computed once for equal weights on the CPU."""
    here, tensors = lm.device.type == "cpu", lm.model.state_dict().values()
    weights = [x.contiguous().view(torch.uint8).numpy().tobytes() for x in tensors] if here else []
    key = lm.model.config.to_json_string(), hash(tuple(weights)), query_heads
    if not here or key not in _CALIBRATED:
        statistics = collect_statistics(lm, random_windows())
        windows = random_windows()
        scores = score_atoms(lm, RandomOrder(0), statistics, windows, query_heads=query_heads)
        _CALIBRATED[key] = statistics, orders_of(lm, scores)
    return _CALIBRATED[key]


_CALIBRATED = dict[tuple[str, int, bool], tuple[Statistics, list[Order]]]()


def pruner_of(
    lm: LanguageModel,
    compensation: Compensation | None = None,
    *,
    channel_multiple: int = CHANNEL_MULTIPLE,
    whole_sites: bool = False,
    query_heads: bool = True,
    **stored: Any,
) -> LivePruner:
    """A pruner with a random order, by default without compensation.

    Args:
        query_heads: whether query heads are units.
        stored: how the level bank is stored (see `Bank.build`).
    """
    statistics, orders = calibrated(lm, query_heads=query_heads and not whole_sites)
    space = width_space(lm, channel_multiple, whole_sites=whole_sites, orders=orders)
    bank = Bank.build(lm, space, orders, statistics, compensation or NoCompensation(), **stored)
    return LivePruner(lm, space, bank)


def policies(space: Space) -> dict[str, list[int]]:
    """Policies by name; some have empty blocks."""
    dense = space.dense.tolist()
    attention = [site.kind == "attention" for site in space.sites]
    drawn = torch.Generator().manual_seed(2)
    return {
        "dense": dense,
        "random": [int(torch.randint(1, k + 1, (), generator=drawn)) for k in dense],
        "first attention empty": [0, *dense[1:-1], 1],
        "a layer empty": [0 if s.layer == 1 else s.units for s in space.sites],
        "no attention": [0 if a else k - 1 for a, k in zip(attention, dense, strict=True)],
        "no mlp": [k if a else 0 for a, k in zip(attention, dense, strict=True)],
    }


def dropped_columns(
    model: PreTrainedModel, space: Space, orders: list[Order], kept: list[int]
) -> list[tuple[nn.Linear, Tensor]]:
    """The consumer of each site, and the original indices of the columns that a policy removes."""
    sites = zip(space.sites, adapter_for(model.config).couplings(model), orders, kept, strict=True)
    return [
        (coupling.consumer, order.columns(coupling.columns)[widths(site, coupling)[keep] :])
        for site, coupling, order, keep in sites
    ]


def masked(
    model: PreTrainedModel, space: Space, orders: list[Order], kept: list[int]
) -> PreTrainedModel:
    """A copy of the dense model whose pruned columns are multiplied by zero."""
    model = copy.deepcopy(model)
    for consumer, columns in dropped_columns(model, space, orders, kept):
        consumer.weight[:, columns] = 0
    mask_routers(model, space, orders, kept)
    return model


def mask_routers(
    model: PreTrainedModel, space: Space, orders: list[Order], kept: list[int]
) -> None:
    """Keeps the routers of a dense model from choosing the experts that a policy removes."""
    for site, coupling, order, keep in zip(
        space.sites, adapter_for(model.config).couplings(model), orders, kept, strict=True
    ):
        if site.kind == "experts" and keep:
            router, gone = coupling.producers[0].linear, order.atoms[keep * site.atoms_per_unit :]
            own = torch.zeros(coupling.atoms) if router.bias is None else router.bias.clone()
            router.bias = nn.Parameter(own.index_fill(0, gone, -torch.inf), requires_grad=False)
