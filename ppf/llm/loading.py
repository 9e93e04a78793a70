"""Loading a causal language model with its tokenizer and adapter."""

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError
from ppf.llm.adapter import Adapter, Coupling
from ppf.llm.checkpoint import read_config, read_model, read_tokenizer
from ppf.llm.families import adapter_for
from ppf.llm.windows import check_window
from ppf.space import Site


@dataclass
class LanguageModel:
    """A loaded model, ready to be pruned: evaluation mode, no gradients."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter

    @cached_property
    def couplings(self) -> list[Coupling]:
        return self.adapter.couplings(self.model)

    def coupling_indices(self, sites: Iterable[Site]) -> list[int]:
        """The position of each site's coupling in `couplings`."""
        indices = {coupling.name: i for i, coupling in enumerate(self.couplings)}
        return [indices[site.name] for site in sites]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


def load(
    config: DictConfig,
    cache: str,
    *,
    device: torch.device | str = "cpu",
    window: int | None = None,
) -> LanguageModel:
    """Loads what a `model=` config names.

    Args:
        config: with `path` (a local folder, or null), `source` (a function of `ppf.llm.sources`)
            and `dtype`.
        cache: where converted and random checkpoints are kept.
        window: tokens in a window that the model will read; None: not checked.

    Raises:
        PPFError: nothing is there, the hub cannot be reached, files are damaged, no adapter knows
            the family, or the model has fewer positions than a window has tokens.
    """
    dtype = resolve_dtype(config.dtype)
    source = local_folder(config.path, "model.path") if config.path else _source(config)(cache)
    described = read_config(source)
    adapter = adapter_for(described)
    if window:
        check_window(window, described)
    tokenizer = read_tokenizer(source, described)
    model = read_model(source, described, dtype)
    return LanguageModel(model.eval().requires_grad_(False).to(device), tokenizer, adapter)


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype that `model.dtype` means; `auto` is bfloat16 where the hardware is faster in it."""
    if name == "auto":
        name = "bfloat16" if _fast_bfloat16() else "float32"
    if name not in ("float32", "bfloat16", "float16"):
        raise PPFError(f"model.dtype={name} is unknown: give auto, float32, bfloat16 or float16.")
    return getattr(torch, name)


def _fast_bfloat16() -> bool:
    """On x86 its matrix units (AMX) decide, or AMD's vector instructions.

    Intel's vector instructions for it are no faster than those for float32; AMD's, from Zen 4 on,
    are twice to three times as fast (measured by `benchmarks/labels.py`).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    if platform.machine() in ("x86_64", "AMD64"):
        vectors = torch.cpu._is_avx512_bf16_supported() and _is_amd()
        return vectors or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_amd() -> bool:
    described = Path("/proc/cpuinfo")
    return described.is_file() and "AuthenticAMD" in described.read_text()


def local_folder(path: str, override: str) -> str:
    """The path of a model folder, given as `override`; raises PPFError if it is none."""
    if not (Path(path) / "config.json").is_file():
        raise PPFError(f"{override}={path} is no Hugging Face model folder: it has no config.json.")
    return path


def _source(config: DictConfig) -> Callable[[str], str]:
    if config.source is None:
        raise PPFError(
            "this model has no source of its own: give a local folder with model.path=FOLDER."
        )
    return instantiate(config.source, _partial_=True, _convert_="all")
