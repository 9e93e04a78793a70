"""Number formats and devices of a model that is loaded."""

import pytest
import torch
from omegaconf import OmegaConf

from ppf.errors import PPFError
from ppf.labels.labeller import Labeller
from ppf.llm import loading
from ppf.llm.loading import check_division, divide, resolve_dtype
from tests.tiny import TinySetup


@pytest.mark.parametrize(
    ("device", "supported", "dtype"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda:1", False, torch.float32),
        ("mps", True, torch.float32),
        ("cpu", True, torch.float32),
    ],
)
def test_auto_asks_the_device_that_is_used(
    monkeypatch: pytest.MonkeyPatch, device: str, supported: bool, dtype: torch.dtype
) -> None:
    """Also where there are a GPU and a processor without bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    monkeypatch.setattr(loading.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_dtype("auto", device) == dtype


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
