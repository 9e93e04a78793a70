"""Writes a tokenizer as GGUF metadata."""

import json
import re
from typing import Any

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from ppf.errors import PPFError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# Steps by which a byte-level tokenizer splits a text before merging → llama.cpp's name for them.
_SPLITS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_LLAMA3, "bytes"): "llama-bpe",
    (_QWEN2, "bytes"): "qwen2",
}


def write_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int
) -> None:
    """Writes tokens, merges, special tokens and chat template.

    Args:
        rows: number of rows in the embedding; a row without a token gets a placeholder.

    Raises:
        PPFError: llama.cpp does not support the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: Any = json.loads(backend.to_str()) if backend else {"model": {"type": None}}
    if parts["model"]["type"] != "BPE":
        raise PPFError(
            "GGUF export supports byte-pair encoding only, which this model's tokenizer does not"
            " use: give export=huggingface."
        )
    tokens, types = _tokens(tokenizer, rows, pieces=parts["model"]["byte_fallback"])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if parts["model"]["byte_fallback"]:
        _write_sentencepiece(writer, parts, tokens)
    else:
        _write_byte_level(writer, parts, tokens)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < rows:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    if templates:
        writer.add_chat_template(templates)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, rows: int, *, pieces: bool
) -> tuple[list[str], list[TokenType]]:
    """Token and type for each row of the embedding.

    Args:
        pieces: whether the tokenizer has SentencePiece's form. Then some tokens stand for bytes,
            and llama.cpp looks for added tokens before it replaces spaces.
    """
    added = tokenizer.added_tokens_decoder
    # Plain text has no special tokens. Gemma 3's token for images has no row in text models.
    rowless = {number for number, token in added.items() if token.special and number >= rows}
    vocabulary = {t: number for t, number in tokenizer.get_vocab().items() if number not in rowless}
    if max(vocabulary.values()) >= rows:
        raise PPFError(
            f"the tokenizer has more tokens than the embedding's {rows} rows:"
            " give export=huggingface."
        )
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for token, number in vocabulary.items():
        tokens[number] = token
        if number in added:
            special = added[number].special
            types[number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
            if pieces and not special:
                tokens[number] = token.replace("▁", " ")
        else:
            is_byte = pieces and _BYTE.fullmatch(token)
            types[number] = TokenType.BYTE if is_byte else TokenType.NORMAL
    return tokens, types


def _write_byte_level(writer: gguf.GGUFWriter, parts: dict[str, Any], tokens: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(parts["pre_tokenizer"] or {"type": "no pre-tokenizer"}))
    # llama.cpp requires at least one merge. That of two special tokens never applies.
    merges = parts["model"]["merges"] or [tokens[:2]]
    writer.add_token_merges([" ".join(pair) for pair in merges])


def _split(step: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a pre-tokenizer splits text."""
    steps = tuple(_step_name(part) for part in step.get("pretokenizers", [step]))
    if steps not in _SPLITS:
        raise PPFError(
            "llama.cpp does not support how this model's tokenizer splits text"
            f" ({', then '.join(steps)}): give export=huggingface."
        )
    return _SPLITS[steps]


def _step_name(step: dict[str, Any]) -> str:
    """Name of one splitting step in `_SPLITS`, or its type if it is unknown."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return "words" if regex else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}:
            return regex
    return step["type"]


def _write_sentencepiece(writer: gguf.GGUFWriter, parts: dict[str, Any], tokens: list[str]) -> None:
    """Writes scores instead of merges: the earlier a merge, the higher the score of its result."""
    rank: dict[str, int] = {}
    for pair in parts["model"]["merges"]:
        rank.setdefault("".join(pair), len(rank))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank.get(token, len(rank))) for token in tokens])
    # The normalizer or Metaspace can put a space before every text.
    steps = json.dumps([parts["normalizer"], parts["pre_tokenizer"]])
    marks = ('"prepend":', '"prepend_scheme": "first"', '"prepend_scheme": "always"')
    writer.add_add_space_prefix(any(mark in steps for mark in marks))
