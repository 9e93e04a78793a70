"""Divides a model's decoder layers over the GPUs of one process."""

from collections.abc import Sequence

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import get_balanced_memory, get_max_memory
from omegaconf import DictConfig
from torch import nn

from ppf.errors import PPFError


def check_division(config: DictConfig, device: torch.device, processes: int = 1) -> None:
    """Checks that the layers of a `model=` config may be divided, if it asks for that.

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


def over_gpus(model: nn.Module, layers: nn.ModuleList, device: torch.device) -> list[torch.device]:
    """A device for each decoder layer, in proportion to the free memory of all visible GPUs.

    Args:
        model: whose other weights lie on `device`.
        layers: its decoder layers.
        device: of this process, a GPU.

    Raises:
        PPFError: the layers do not fit on the GPUs.
    """
    kind = [type(layers[0]).__name__]
    free = get_max_memory()
    others = sum(p.nbytes for p in {*model.parameters()} - {*layers.parameters()})
    free[device.index or 0] -= others
    balanced = get_balanced_memory(layers, free, kind, dtype=model.dtype)
    found = infer_auto_device_map(layers, balanced, kind, dtype=model.dtype, clean_result=False)
    places = [found[name] for name, _ in layers.named_children()]
    if {*places} & {"cpu", "disk"}:
        raise PPFError(
            "the model does not fit on the GPUs of this process: give model.device_map=null"
            " model.offload=cpu."
        )
    return [torch.device("cuda", int(place)) for place in places]


def divide(layers: nn.ModuleList, devices: Sequence[torch.device]) -> None:
    """Moves each layer to its device. Inputs are moved there too, and outputs are moved back.

    So everything outside the layers is on one device. Hooks inside a layer see that layer's device.
    """
    for layer, device in zip(layers, devices, strict=True):
        add_hook_to_module(layer.to(device), AlignDevicesHook(device, io_same_device=True))
