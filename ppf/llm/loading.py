"""Loads a causal language model with its tokenizer and adapter."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError
from ppf.llm.adapter import Adapter, Coupling
from ppf.llm.checkpoint import read_config, read_model, read_tokenizer, tie_embeddings
from ppf.llm.families import adapter_for
from ppf.llm.offload import Offloaded, Place
from ppf.llm.sources import checkpoint_of
from ppf.space import Site


@dataclass
class LanguageModel:
    """A loaded model in evaluation mode and without gradients, with its tokenizer and adapter.

    Args:
        offloaded: moves the decoder layers to the device and back; None: they stay there.
        devices: of the weights of each decoder layer; None: they all lie on `device`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    offloaded: Offloaded | None = None
    devices: Sequence[torch.device] | None = None

    @cached_property
    def couplings(self) -> list[Coupling]:
        """The prunable blocks, as in `Adapter.couplings`."""
        return self.adapter.couplings(self.model)

    def coupling_indices(self, sites: Iterable[Site]) -> list[int]:
        """The position of each site's coupling in `couplings`."""
        indices = {coupling.name: i for i, coupling in enumerate(self.couplings)}
        return [indices[site.name] for site in sites]

    @contextmanager
    def resident(self, index: int) -> Iterator[nn.Module]:
        """The context in which a decoder layer's weights are on the device; yields the layer."""
        layer = self.adapter.layers(self.model)[index]
        with self.offloaded.resident(layer) if self.offloaded else nullcontext():
            yield layer

    @property
    def device(self) -> torch.device:
        """The device of hidden states between layers, and of all weights outside the layers."""
        return self.model.device

    def device_of(self, layer: int) -> torch.device:
        """The device that computes a decoder layer."""
        return self.devices[layer] if self.devices else self.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


def place_of_layers(config: DictConfig, device: torch.device) -> Place | None:
    """Where the layers' weights lie until they are used; None: on the device that uses them."""
    place = config.get("offload")
    return None if place == device.type else place


def load(
    config: DictConfig, cache: str, *, device: torch.device | str = "cpu", window: int | None = None
) -> LanguageModel:
    """Loads the model of a `model=` config.

    Args:
        config: has `path` (a local folder or null), `source` (a function of `ppf.llm.sources`,
            perhaps with a `revision`), `dtype`, and perhaps `offload` or `device_map`.
        cache: folder for converted and random checkpoints.
        device: device that the weights are moved to.
        window: number of tokens in the windows that the model will read; None: not checked.

    Raises:
        PPFError: the checkpoint is missing, damaged or cannot be downloaded; its family is not
            supported; the window is longer than the model's positions; or the layers cannot be
            divided over GPUs.
    """
    dtype, device = resolve_dtype(config.dtype, device), torch.device(device)
    check_division(config, device)
    source = checkpoint_of(config, cache)
    revision = None if config.path else config.source.get("revision")
    model_config = read_config(source, revision=revision)
    adapter = adapter_for(model_config)
    if window:
        check_window(window, model_config)
    tokenizer = read_tokenizer(source, model_config, revision=revision)
    place = place_of_layers(config, device)
    stored = place == "disk"
    read = read_model(source, model_config, dtype, revision=revision, as_stored=stored)
    model = read.eval().requires_grad_(False)
    tie_embeddings(model, bool(config.get("tie_embeddings")))
    adapter.with_projections(model)
    layers = adapter.layers(model)
    if config.get("device_map"):
        gpus, count = torch.cuda.device_count(), len(layers)
        devices = [torch.device("cuda", number * gpus // count) for number in range(count)]
        divide(layers, devices)
        _move_all_but(layers, model, device)
        return LanguageModel(model, tokenizer, adapter, devices=devices)
    if not place:
        return LanguageModel(model.to(device), tokenizer, adapter)
    offloaded = Offloaded(layers, place, device, Path(cache) / "offload", dtype)
    for parameter in model.parameters():  # those of the layers have this dtype
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if scale := getattr(module, "scalar_embed_scale", None):  # Gemma's, rounded to its dtype
            module.embed_scale = torch.tensor(scale, dtype=dtype)
    model.config.dtype = dtype
    _move_all_but(layers, model, device)
    return LanguageModel(model, tokenizer, adapter, offloaded)


def check_division(config: DictConfig, device: torch.device, processes: int = 1) -> None:
    """Checks that the layers of a `model=` config may be divided over GPUs, if it asks for that.

    Raises:
        PPFError: the layers are offloaded too, the process computes on the CPU, or several
            processes would divide the model over the same GPUs.
    """
    several = processes > 1 or config.get("offload")
    if config.get("device_map") and (several or device.type != "cuda"):
        raise PPFError(
            "model.device_map=auto divides a model over the GPUs of one process, without"
            " model.offload: give model.device_map=null, or fabric=gpu fabric.devices=1."
        )


def divide(layers: nn.ModuleList, devices: Sequence[torch.device]) -> None:
    """Moves each layer to its device. Inputs are moved there too, and outputs are moved back.

    So everything outside the layers is on one device. Hooks inside a layer see that layer's device.
    """
    for layer, device in zip(layers, devices, strict=True):
        add_hook_to_module(layer.to(device), AlignDevicesHook(device, io_same_device=True))


def load_description(
    config: DictConfig, cache: str
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The model's own config and its tokenizer, without weights; arguments as for `load`."""
    source = checkpoint_of(config, cache)
    revision = None if config.path else config.source.get("revision")
    found = read_config(source, revision=revision)
    return found, read_tokenizer(source, found, revision=revision)


def _move_all_but(layers: nn.ModuleList, model: nn.Module, device: torch.device | str) -> None:
    """Moves a model to a device, except the parameters of its decoder layers."""
    stay = set(layers.parameters())
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor not in stay:
            tensor.data = tensor.data.to(device)


def check_window(window: int, config: PreTrainedConfig, override: str = "text.window") -> None:
    """Checks that a model has enough positions for a window.

    Args:
        override: the override that sets the window, for error messages.

    Raises:
        PPFError: `window` exceeds `max_position_embeddings`.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or window
    if window > positions:
        raise PPFError(
            f"{override}={window} exceeds the model's {positions} positions: lower {override}."
        )


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, as `resolve_dtype` reads it."""
    return str(dtype).removeprefix("torch.")


def resolve_dtype(name: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of the override `model.dtype`.

    Args:
        name: "float32", "bfloat16", "float16", or "auto": bfloat16 if the device computes faster
            in it than in float32, else float32.
        device: that the model runs on.
    """
    if name == "auto":
        name = "bfloat16" if _fast_bfloat16(torch.device(device).type) else "float32"
    return getattr(torch, name)


def _fast_bfloat16(device: str) -> bool:
    """Whether this type of device computes faster in bfloat16 than in float32.

    On x86 this needs AMX, or AVX-512 BF16 on an AMD processor. AVX-512 BF16 is not faster on Intel
    processors, and two to three times faster on AMD from Zen 4 on (`benchmarks/labels.py`).
    """
    if device != "cpu":
        return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        info = Path("/proc/cpuinfo")
        amd = info.is_file() and "AuthenticAMD" in info.read_text()
        vectors = amd and torch.cpu._is_avx512_bf16_supported()
        return vectors or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
