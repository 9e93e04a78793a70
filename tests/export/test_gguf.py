import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ppf.errors import PPFError
from ppf.export import Pruned
from ppf.export.gguf import GGUF
from ppf.export.gguf_vocabulary import _LLAMA3, _QWEN2
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from ppf.space import uniform
from tests.checkpoints import CHECKPOINTS, policies, pruner_of, random_model
from tests.export.conftest import POLICY, export_gguf

ONE_FAMILY = pytest.mark.parametrize("pruner", ["llama-groups-of-3-tied"], indirect=True)


@pytest.fixture(params=["llama-groups-of-3-tied", "llama-biases", "mistral-sliding-window"])
def pruner(request: pytest.FixtureRequest) -> LivePruner:
    return pruner_of(random_model(CHECKPOINTS[request.param]))


def value(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def values(reader: GGUFReader) -> dict[str, torch.Tensor]:
    return {
        t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).astype(np.float32))
        for t in reader.tensors
    }


def test_metadata_has_widths_and_provenance(pruner: LivePruner, tmp_path: Path) -> None:
    kept = policies(pruner.space)["random"]
    pruner.apply([0, kept[1], kept[2], 0, 0, *kept[5:]])
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    config: Any = pruner.lm.model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    biased = pruner.blocks[4].o_proj.bias is not None
    kept_groups, kept_queries = pruner.shapes[2]
    # One stands for none in the first layer, or where a bias is.
    groups = [1, kept_groups, int(biased)]
    heads = [queries, kept_groups * kept_queries, queries * int(biased)]
    channels = [16 * kept[1], 32, 16 * kept[5]]
    told = {
        "general.architecture": "deci",
        "deci.attention.head_count": heads,
        "deci.attention.head_count_kv": groups,
        "deci.feed_forward_length": channels,
        "deci.rope.dimension_count": config.head_dim,
        "deci.rope.freq_base": config.rope_parameters["rope_theta"],
        "deci.context_length": getattr(config, "sliding_window", None) or 2048,
    }
    assert {key: value(reader, key) for key in told} == told
    assert json.loads(value(reader, "ppf.policy")) == POLICY
    assert json.loads((tmp_path / "policy.json").read_text()) == POLICY


def test_the_policy_of_another_model_in_the_folder_stays(
    pruner: LivePruner, tmp_path: Path
) -> None:
    for name in ("config.json", "policy.json"):
        (tmp_path / name).write_text("{}")
    export_gguf(pruner, tmp_path, POLICY, type="f16")
    assert (tmp_path / "policy.json").read_text() == "{}"


def test_tensors_are_the_models_own(pruner: LivePruner, tmp_path: Path) -> None:
    pruner.apply(policies(pruner.space)["random"])
    found = values(GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16")))
    own, head = pruner.lm.model.state_dict(), pruner.lm.model.config.head_dim
    for name, expected in {
        "token_embd.weight": own["model.embed_tokens.weight"],
        "output_norm.weight": own["model.norm.weight"],
        "blk.1.attn_v.weight": own["model.layers.1.self_attn.v_proj.weight"],
        "blk.1.attn_output.weight": own["model.layers.1.self_attn.o_proj.weight"],
        "blk.2.ffn_down.weight": own["model.layers.2.mlp.down_proj.weight"],
        "blk.2.ffn_norm.weight": own["model.layers.2.post_attention_layernorm.weight"],
    }.items():
        torch.testing.assert_close(found[name], expected, atol=1e-3, rtol=1e-3)
    keys, halves = found["blk.1.attn_k.weight"], own["model.layers.1.self_attn.k_proj.weight"]
    pairs = torch.stack([halves[: head // 2], halves[head // 2 : head]], 1).flatten(0, 1)
    torch.testing.assert_close(keys[:head], pairs, atol=1e-3, rtol=1e-3)
    assert ("output.weight" in found) != pruner.lm.model.config.tie_word_embeddings


BITS = {"f16": 16, "q8_0": 8.5, "q5_0": 5.5, "q4_0": 4.5}  # for one number, its scale included


@pytest.mark.parametrize("type", BITS)
def test_the_file_shrinks_by_what_the_policy_removed(type: str, tmp_path: Path) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["llama-32-heads-untied"]), channel_multiple=32)
    dense = export_gguf(pruner, tmp_path / "dense", POLICY, type=type)
    kept = uniform(pruner.space, torch.tensor([0.5]))[0]
    kept[::2] = 8  # of 32 heads of size 4: rows of 32 numbers, which q8_0 divides
    pruner.apply(kept.tolist())
    pruned = export_gguf(pruner, tmp_path / "pruned", POLICY, type=type)
    removed = BITS[type] / 8 * int(pruner.space.removed(kept))
    assert dense.stat().st_size - pruned.stat().st_size == pytest.approx(removed, rel=0.01)


@ONE_FAMILY
def test_rows_that_no_blocks_divide_are_f16(pruner: LivePruner, tmp_path: Path) -> None:
    pruner.apply([1, 1, *pruner.space.dense.tolist()[2:]])
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="q8_0"))
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"  # 16 channels
    assert types["blk.1.ffn_down.weight"] == "Q8_0"


@pytest.mark.parametrize(("type", "error"), [("q5_0", 0.05), ("q4_0", 0.1)])
@pytest.mark.parametrize("form", ["llama-groups-of-3-tied", "llama-32-heads-untied"])
def test_the_output_matrix_has_8_bits(form: str, type: str, error: float, tmp_path: Path) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS[form]))
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type=type))
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    output = "output.weight" if "untied" in form else "token_embd.weight"
    assert types.pop(output) == "Q8_0"
    assert {kind for name, kind in types.items() if "norm" not in name} == {type.upper()}
    found, own = values(reader), pruner.lm.model.state_dict()
    key = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found["blk.1.ffn_up.weight"], own[key], atol=error, rtol=0)


def test_qwen3_is_written_as_openelm(tmp_path: Path) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["qwen3-groups-of-2-tied"]))
    pruner.apply([0, 0, 1, 3, 3, 8])
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    assert value(reader, "general.architecture") == "openelm"
    assert value(reader, "openelm.attention.head_count") == [2, 1, 4]
    assert value(reader, "openelm.attention.head_count_kv") == [1, 1, 2]
    assert value(reader, "openelm.feed_forward_length") == [32, 48, 128]
    found, own = values(reader), pruner.lm.model.state_dict()
    parts = [own[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    torch.testing.assert_close(
        found["blk.1.attn_qkv.weight"], torch.cat(parts), atol=1e-3, rtol=1e-3
    )
    assert not found["blk.0.attn_qkv.weight"].any() and not found["blk.0.ffn_up.weight"].any()


def test_gemma3_has_one_width_and_narrower_layers_are_filled_up(tmp_path: Path) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]))
    pruner.lm.model.to(torch.bfloat16)
    pruner.apply([1, 2, 0, 4, 2, 1])
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    assert value(reader, "general.architecture") == "gemma3"
    told = {"head_count": 2, "head_count_kv": 1, "sliding_window": 8}
    assert {key: value(reader, f"gemma3.attention.{key}") for key in told} == told
    assert value(reader, "gemma3.feed_forward_length") == 64
    assert value(reader, "gemma3.attention.sliding_window_pattern") == [True, False, True]
    found, own = values(reader), pruner.lm.model.state_dict()
    norm = own["model.layers.0.input_layernorm.weight"].float() + 1  # it is not rounded again
    torch.testing.assert_close(found["blk.0.attn_norm.weight"], norm, rtol=1e-6, atol=0)
    narrow = found["blk.0.ffn_up.weight"]
    assert narrow[:32].any() and not narrow[32:].any()
    one_head, size = found["blk.0.attn_output.weight"], pruner.lm.model.config.head_dim
    assert one_head[:, :size].any() and not one_head[:, size:].any()


WHOLE = "some layers of this policy keep all units, so the file would not shrink"


@pytest.mark.parametrize(
    ("form", "biased", "part"),
    [
        ("opt-32-heads-tied", False, "export=gguf supports llama, mistral, .* not opt"),
        ("qwen3-groups-of-2-tied", True, "least_squares_without_bias, or give export=hugg"),
        ("qwen3-32-heads-untied", False, WHOLE),
        ("gemma3-one-kv-head-tied", False, WHOLE),
    ],
)
def test_what_llama_cpp_does_not_support_is_refused(form: str, biased: bool, part: str) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS[form]), Bias() if biased else None)
    kept = [*pruner.space.dense.tolist()[:-1], 1]
    pruner.apply(kept)
    with pytest.raises(PPFError, match=part):
        GGUF("f16", 0).check(Pruned.of(pruner))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"query_pre_attn_scalar": 48}, "factor of the attention scores"),
        ({"num_hidden_layers": 62}, "factor of the attention scores"),
        ({"attn_logit_softcapping": 50.0}, "cap of the attention scores"),
        ({"hidden_activation": "silu"}, "activation \\(silu\\)"),
    ],
)
def test_a_gemma3_that_llama_cpp_would_compute_wrongly_is_refused(
    change: dict[str, Any], part: str
) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["gemma3-one-kv-head-tied"]))
    for key, given in change.items():
        setattr(pruner.lm.model.config, key, given)
    with pytest.raises(PPFError, match=part):
        GGUF("f16", 0).check(Pruned.of(pruner))


def with_split(split: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2), "isolated"), BYTES]),
}


@ONE_FAMILY
@pytest.mark.parametrize("name", SPLITS)
def test_a_byte_level_tokenizer(name: str, pruner: LivePruner, tmp_path: Path) -> None:
    pruner.lm.tokenizer = with_split(SPLITS[name])
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    assert value(reader, "tokenizer.ggml.model") == "gpt2"
    assert value(reader, "tokenizer.ggml.pre") == name
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert tokens[:4] == ["<s>", "a", "b", "ab"] and len(tokens) == 257
    types = value(reader, "tokenizer.ggml.token_type")
    assert types[:5] == [TokenType.CONTROL, *3 * [TokenType.NORMAL], TokenType.UNUSED]
    assert value(reader, "tokenizer.ggml.merges") == ["a b"]
    assert value(reader, "tokenizer.ggml.add_bos_token") is False


@ONE_FAMILY
def test_a_tokenizer_of_sentencepieces_form(pruner: LivePruner, tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<0x41>": 1, "a": 2, "▁": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False, special=False)])
    pruner.lm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    assert value(reader, "tokenizer.ggml.tokens")[1:5] == ["<0x41>", "a", "▁", "  "]
    types = value(reader, "tokenizer.ggml.token_type")[1:5]
    normal = TokenType.NORMAL
    assert types == [TokenType.BYTE, normal, normal, TokenType.USER_DEFINED]
    assert value(reader, "tokenizer.ggml.add_space_prefix") is False


@ONE_FAMILY
@pytest.mark.parametrize(
    ("step", "prepends"),
    [
        (normalizers.Prepend("▁"), True),
        (pre_tokenizers.Metaspace("▁", "always"), True),
        (pre_tokenizers.Metaspace("▁", "never"), False),
    ],
)
def test_a_space_before_every_text_is_written_in_each_form(
    step: Any, prepends: bool, pruner: LivePruner, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "▁": 1}, [], byte_fallback=True))
    is_normalizer = isinstance(step, normalizers.Normalizer)
    setattr(tokenizer, "normalizer" if is_normalizer else "pre_tokenizer", step)
    pruner.lm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    assert value(reader, "tokenizer.ggml.add_space_prefix") is prepends


@ONE_FAMILY
def test_a_special_token_without_a_row_is_left_out(pruner: LivePruner, tmp_path: Path) -> None:
    """As Gemma 3's token for images."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<image>"])
    pruner.lm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert pruner.lm.tokenizer.convert_tokens_to_ids("<image>") == 257
    reader = GGUFReader(export_gguf(pruner, tmp_path, POLICY, type="f16"))
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == 257 and "<image>" not in tokens


@ONE_FAMILY
def test_an_unknown_split_is_refused(pruner: LivePruner) -> None:
    pruner.lm.tokenizer = with_split(pre_tokenizers.Whitespace())
    with pytest.raises(PPFError, match=r"how .* splits text \(Whitespace\)"):
        GGUF("f16", 0).check(Pruned.of(pruner))
