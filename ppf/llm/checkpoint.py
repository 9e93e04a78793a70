"""Reads checkpoints. Damaged ones are refused, and none of their files can run code.

Modelling code in the folder (`auto_map`), attention kernels that the config names, and pickled
weights (`.bin`) are therefore not used.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import SPECIAL_TOKENS_MAP_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import CHAT_TEMPLATE_DIR, cached_file, find_adapter_config_file, logging

from ppf.errors import PPFError, reason
from ppf.progress import say

_LONGEST = 4096  # characters in a path
_WEIGHTS = (".safetensors", ".bin")
_ROUNDING = 0.15  # relative error of rounded embeddings, at most; in q4_0 of two models: 0.09, 0.10


def read_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a folder or of a hub repository.

    Args:
        source: the folder or the id of the repository.
        revision: branch, tag or commit of the repository; None: its main branch.

    Raises:
        PPFError: the config is missing or damaged.
    """
    with _reading(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    config._attn_implementation = None  # transformers would download a kernel of that name
    vars(config).pop("custom_pipelines", None)  # exports must not name code of others
    config.return_dict = True  # results have names, not numbers
    return config


def read_tokenizer(
    source: str, config: PreTrainedConfig, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub repository; arguments as for `read_model`.

    Its attribute `embedded` is the number of tokens that the model embeds: see `check_embedded`.

    Raises:
        PPFError: the tokenizer is missing or damaged, or names files elsewhere on this machine.
    """
    with _reading(source):
        _refuse_foreign_files(source, revision)
        given = {"revision": revision, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source, **given)
        tokenizer.init_kwargs.pop("auto_map", None)  # exports must not name code of others
        tokenizer.embedded = config.get_text_config().vocab_size
    return tokenizer


def _refuse_foreign_files(source: str, revision: str | None) -> None:
    """Raises ValueError if a tokenizer would read files elsewhere on this machine.

    Exports and the server would then publish what they contain.
    """
    folder = Path(source)
    for file in (*folder.glob("*"), *folder.glob(f"{CHAT_TEMPLATE_DIR}/*")):
        if file.suffix not in _WEIGHTS and _is_foreign(file, folder):
            raise ValueError(f"{file} is a link to a file elsewhere: replace it by a copy")
    given: Any = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    # transformers passes all entries of both files to the tokenizer's class.
    for name in (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE):
        found = cached_file(source, name, **given)
        entries = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        for key in entries:
            if name == SPECIAL_TOKENS_MAP_FILE and not key.endswith(("_token", "_tokens")):
                raise ValueError(f"{name} has the entry {key}, which is no token: remove it")
            if key.endswith("_file") and isinstance(entries[key], int):  # an open file's number
                raise ValueError(f"{name} has the entry {key}={entries[key]}: remove it")
        for value in strings(entries):
            if len(value) >= _LONGEST or "\0" in value:
                continue
            if any(_is_foreign(path, folder) for path in (Path(value), folder / value)):
                raise ValueError(f"{name} names the file {value} of this machine: remove the entry")


def _is_foreign(file: Path, folder: Path) -> bool:
    """Whether a path leads to a file outside of a folder.

    The hub's cache has files in `blobs`, and links to them in a folder of `snapshots`.
    """
    path, root = Path(os.path.realpath(file)), folder.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    own = path.is_relative_to(root) or path.is_relative_to(blobs)
    return os.path.exists(path) and not os.path.isdir(path) and not own


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from strings(part)


def read_model(
    source: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    architecture: Any = AutoModelForCausalLM,
    revision: str | None = None,
    *,
    as_stored: bool = False,
) -> PreTrainedModel:
    """The model of a folder or of a hub repository, on the CPU.

    Args:
        source, revision: as for `read_config`.
        config: the result of `read_config`.
        dtype: dtype that the weights will be used in.
        architecture: class that builds the model; by default transformers chooses it by the config.
        as_stored: leave the weights in the checkpoint's dtype. Then they are mapped from its files,
            and the system can drop them from memory.

    Raises:
        PPFError: a file is damaged; a tensor is missing, unknown, quantised, not finite or has a
            wrong shape; or the checkpoint needs its own code.
    """
    with _reading(source), quiet():
        own_code = getattr(config, "auto_map", None) or {}
        if architecture is AutoModelForCausalLM and "AutoModelForCausalLM" in own_code:
            raise ValueError("it needs its own modelling code, which PPF does not run")
        if getattr(config, "quantization_config", None):
            raise ValueError("it has quantised weights, which PPF does not read")
        # transformers would attach the adapter.
        if find_adapter_config_file(source, revision=revision):
            raise ValueError(
                "it has an adapter (adapter_config.json), which PPF does not load: merge it with"
                " PEFT's `merge_and_unload`"
            )
        model, found = architecture.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype="auto" if as_stored else dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # `weights_fault` reports them by name
            output_loading_info=True,
        )
        if fault := weights_fault(model, found, dtype):
            raise ValueError(f"it {fault}")
    # transformers leaves head and embeddings apart if the checkpoint stores both, whatever its
    # config says. Programs that tie the weights by the config would then replace the head.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    model.config.tie_word_embeddings = head.weight is embedding.weight
    return model


def tie_embeddings(model: PreTrainedModel, wanted: bool) -> None:
    """Makes the output embeddings also the input embeddings, or says that this would save memory.

    Some GGUF files have the tied embeddings of a model twice, rounded to different formats.

    Raises:
        PPFError: the two differ by more than rounding.
    """
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if head.weight is embedding.weight:
        return
    some, other = (each.weight[:1024].float() for each in (head, embedding))
    alike = some.shape == other.shape and (some - other).norm() < _ROUNDING * some.norm()
    if wanted and not alike:
        raise PPFError(
            "the input and output embeddings of this model differ by more than rounding: give"
            " model.tie_embeddings=false."
        )
    if wanted:
        embedding.weight, model.config.tie_word_embeddings = head.weight, True
    elif alike:
        say(
            "The input and output embeddings of this model are equal except for rounding:"
            f" model.tie_embeddings=true saves {head.weight.nbytes / 2**20:.0f} MiB."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the loading bar and the table of keys of transformers, but not bars of downloads."""
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # this also hides bars of downloads
    if bar:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def weights_fault(
    model: PreTrainedModel, found: Mapping[str, Any], dtype: torch.dtype
) -> str | None:
    """Describes a fault of the weights; tied and obsolete tensors are no fault.

    Args:
        found: the loading info of transformers' `from_pretrained`.
        dtype: dtype that the weights will be used in.
    """
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "has an unknown tensor")):
        if names := sorted(found[key]):
            return f"{what} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        return f"has {name} of shape {tuple(stored)}, not {tuple(expected)}"
    for name, tensor in model.named_parameters():
        extremes = tensor.aminmax() if tensor.numel() else ()
        if not all(extreme.to(dtype).isfinite() for extreme in extremes):
            return f"has NaN or infinite values in {name} as {dtype}"
    return None


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns every error inside the context into a PPFError."""
    try:
        yield
    except PPFError:
        raise
    except Exception as error:  # transformers raises many types on damaged files
        raise PPFError(
            f"cannot load '{what}' ({reason(error)}): give another folder or model."
        ) from error
