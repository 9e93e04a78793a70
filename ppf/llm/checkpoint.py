"""Reading checkpoints: what is damaged is refused, and no file may choose code to run.

Code that lies beside the weights (`auto_map`), attention kernels that a config names, and weights
that are pickles (`.bin`) are therefore not accepted.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ppf.errors import PPFError, reason


def read_config(source: str, override: str = "model.path") -> PreTrainedConfig:
    """The config of a folder or of a hub repository.

    Args:
        override: the setting that names another checkpoint.

    Raises:
        PPFError: there is none, or it is damaged.
    """
    with _reading(source, override):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config._attn_implementation = None  # the name of a kernel would make transformers download it
    return config


def read_tokenizer(
    source: str, config: PreTrainedConfig, override: str = "model.path"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub repository.

    Raises:
        PPFError: there is none, it is damaged, or it gives ids that the model does not know.
    """
    with _reading(source, override):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # Special tokens do not come out of plain text. Gemma 3's for images has no row in text models.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max(set(tokenizer.get_vocab().values()) - special, default=-1)
    embedded = config.get_text_config().vocab_size
    if largest >= embedded:
        raise PPFError(
            f"the tokenizer of {source} gives ids up to {largest}, but the model embeds"
            f" {embedded} tokens: give a folder whose files belong together with"
            f" {override}=FOLDER."
        )
    return tokenizer


def read_model(
    source: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    override: str = "model.path",
    architecture: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """The model of a folder or of a hub repository, on the CPU.

    Args:
        config: of `read_config`.
        architecture: builds the model; by default the class that transformers has for the config.

    Raises:
        PPFError: files are damaged, tensors are missing, unknown, of another shape or not finite,
            or the checkpoint needs code of its own.
    """
    own_code = getattr(config, "auto_map", None) or {}
    if architecture is AutoModelForCausalLM and "AutoModelForCausalLM" in own_code:
        raise PPFError(
            f"{source} brings modelling code of its own, which is not run: give a folder of a model"
            f" that transformers knows with {override}=FOLDER."
        )
    check_files(source, override)
    with _reading(source, override), quiet():
        model, found = architecture.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    if fault := _fault(model, found):
        raise PPFError(f"{source} {fault}: give a whole checkpoint with {override}=FOLDER.")
    return model


def check_files(source: str, override: str = "model.path") -> None:
    """Opens the weight files of a folder; of a hub repository none.

    Raises:
        PPFError: there are no safetensors, or one is empty or truncated.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PPFError(
            f"{source} has no safetensors: convert its weights with transformers'"
            f" `save_pretrained`, or give another folder with {override}=FOLDER."
        )
    for file in files:
        with _reading(str(file), override), safe_open(file, "pt"):
            pass


@contextmanager
def quiet() -> Iterator[None]:
    """Hides transformers' bar and its table of keys; bars of downloads stay."""
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # those of downloads, too
    if bar:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _fault(model: PreTrainedModel, found: Mapping[str, Any]) -> str | None:
    """What is wrong with the weights; what transformers declares as tied or obsolete is not."""
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "has an unknown tensor")):
        if names := sorted(found[key]):
            return f"{what} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        return f"has {name} of shape {tuple(stored)}, not {tuple(expected)}"
    for name, tensor in model.named_parameters():
        if not all(extreme.isfinite() for extreme in tensor.aminmax()):
            return f"has NaN or infinite values in {name} as {tensor.dtype}"
    return None


@contextmanager
def _reading(what: str, override: str) -> Iterator[None]:
    """Turns whatever goes wrong within it into one sentence."""
    try:
        yield
    except Exception as error:  # damaged files make transformers and tokenizers raise anything
        raise PPFError(
            f"cannot load '{what}' ({reason(error)}): give a local folder with {override}=FOLDER."
        ) from error
