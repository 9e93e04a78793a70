"""One model over several GPUs computes the same as on one."""

import pytest
import torch
from omegaconf import OmegaConf

from ppf.errors import PPFError
from ppf.labels.labeller import Labeller
from ppf.llm.loading import check_division, divide
from tests.tiny import TinySetup


def test_a_model_is_divided_by_one_process_with_gpus() -> None:
    for device, processes, offload in (("cpu", 1, None), ("cuda", 2, None), ("cuda", 1, "cpu")):
        config = OmegaConf.create({"device_map": "auto", "offload": offload})
        with pytest.raises(PPFError, match=r"fabric\.devices=1"):
            check_division(config, torch.device(device), processes)


def test_a_divided_model_gives_the_same_labels(tiny: TinySetup) -> None:
    windows, kept = tiny.windows[:2], (tiny.space.dense // 2).tolist()
    expected = Labeller(tiny.lm, tiny.pruner(), windows, batch=2).score(kept)
    layers = tiny.lm.adapter.layers(tiny.lm.model)
    devices = [torch.device("cpu")] * len(layers)
    divide(layers, devices)
    assert all(layer._hf_hook.io_same_device for layer in layers)
    tiny.lm.devices = devices
    assert Labeller(tiny.lm, tiny.pruner(), windows, batch=2).score(kept) == expected
