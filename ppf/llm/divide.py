"""Divides a model's decoder layers over the GPUs of one process."""

from collections.abc import Sequence

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
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


def divide(layers: nn.ModuleList, devices: Sequence[torch.device]) -> None:
    """Moves each layer to its device. Inputs are moved there too, and outputs are moved back.

    So everything outside the layers is on one device. Hooks inside a layer see that layer's device.
    """
    for layer, device in zip(layers, devices, strict=True):
        add_hook_to_module(layer.to(device), AlignDevicesHook(device, io_same_device=True))
