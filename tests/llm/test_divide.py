"""One model over several GPUs: which layer lies where, and that it computes the same."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ppf.errors import PPFError
from ppf.labels.labeller import Labeller
from ppf.llm import LanguageModel
from ppf.llm.divide import check_division, divide, over_gpus
from tests.checkpoints import CHECKPOINTS, random_model
from tests.tiny import TinySetup

CUDA = torch.device("cuda")


@pytest.fixture
def lm() -> LanguageModel:
    return random_model(CHECKPOINTS["llama-biases"])


def gpus(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    monkeypatch.setattr(
        "ppf.llm.divide.get_max_memory", lambda: {**dict(enumerate(free)), "cpu": 0}
    )
    monkeypatch.setattr("accelerate.utils.modeling.is_mps_available", lambda: False)


def nbytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def test_layers_are_divided_over_all_gpus(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = lm.adapter.layers(lm.model)
    gpus(monkeypatch, 9 * nbytes(lm.model), 9 * nbytes(lm.model))
    found = over_gpus(lm.model, layers, CUDA)
    assert len(found) == len(layers)
    assert {device.index for device in found} == {0, 1}
    assert found == sorted(found, key=lambda device: device.index)  # neighbours lie together


def test_what_does_not_fit_is_refused(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = lm.adapter.layers(lm.model)
    gpus(monkeypatch, nbytes(layers[0]) // 2, nbytes(layers[0]) // 2)
    with pytest.raises(PPFError, match=r"model\.offload=cpu"):
        over_gpus(lm.model, layers, CUDA)


@pytest.mark.parametrize(
    ("device", "processes", "keys"), [("cpu", 1, {}), ("cuda", 2, {}), ("cuda", 1, {"offload": 1})]
)
def test_a_model_is_divided_by_one_process_with_gpus(device: str, processes: int, keys) -> None:
    config = OmegaConf.create({"device_map": "auto", **keys})
    with pytest.raises(PPFError, match=r"fabric\.devices=1"):
        check_division(config, torch.device(device), processes)


def test_a_divided_model_gives_the_same_labels(tiny: TinySetup) -> None:
    windows, kept = tiny.windows[:2], (tiny.space.dense // 2).tolist()
    expected = Labeller(tiny.lm, tiny.pruner(), windows, batch=2).score(kept)
    layers = tiny.lm.adapter.layers(tiny.lm.model)
    devices = [torch.device("cpu")] * len(layers)
    divide(layers, devices)
    visits: list[int] = []
    for number, layer in enumerate(layers):
        hook = layer._hf_hook
        original = hook.pre_forward

        def watch(*given, number=number, original=original, **named):
            visits.append(number)
            return original(*given, **named)

        hook.pre_forward = watch
    tiny.lm.devices = devices
    assert Labeller(tiny.lm, tiny.pruner(), windows, batch=2).score(kept) == expected
    assert visits == list(range(len(layers)))
