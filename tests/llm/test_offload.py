"""Offloaded weights: the same model, whose layers visit the device one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm import LanguageModel, load, loading
from ppf.llm.offload import Offloaded
from ppf.llm.sources import byte_tokenizer
from tests.checkpoints import CHECKPOINTS, random_model, random_windows
from tests.llm.test_checkpoint import LAYER, change, saved


def offload(lm: LanguageModel, place, folder: Path, device: str = "cpu") -> Offloaded:
    layers = lm.adapter.layers(lm.model)
    lm.offloaded = Offloaded(layers, place, torch.device(device), folder, lm.dtype)
    return lm.offloaded


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_offloaded_model_computes_the_same(lm: LanguageModel, tmp_path: Path, place) -> None:
    ids = random_windows()
    with torch.no_grad():
        expected = lm.model(ids).logits
        offload(lm, place, tmp_path)
        assert torch.equal(lm.model(ids).logits, expected)
    assert not list(tmp_path.iterdir())  # its files have no names


def test_what_is_written_to_weights_on_disk_stays(lm: LanguageModel, tmp_path: Path) -> None:
    offload(lm, "disk", tmp_path)
    weight = lm.couplings[0].consumer.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    expected = weight.clone()
    with lm.resident(0):
        pass  # the memory of the file is given back
    assert torch.equal(weight, expected)


def loaded(folder: Path, offload: str | None, dtype: str = "float16") -> LanguageModel:
    """The model of a folder."""
    given = {"path": str(folder), "source": None, "dtype": dtype, "offload": offload}
    return load(OmegaConf.create(given), str(folder))


def test_embeddings_are_scaled_as_without_offload(tmp_path: Path) -> None:
    lm = random_model(CHECKPOINTS["gemma3-groups-of-3-capped-logits-untied"])
    lm.model.to(torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    whole, mapped = (loaded(tmp_path, place, "float32").model for place in (None, "disk"))
    assert whole.get_input_embeddings().embed_scale.item() == pytest.approx(96**0.5)
    with torch.no_grad():
        assert torch.equal(whole(random_windows()).logits, mapped(random_windows()).logits)


def test_weights_on_disk_are_converted_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[torch.dtype]()

    def offloaded(layers: nn.ModuleList, *given: Any) -> Offloaded:
        seen.update(parameter.dtype for parameter in layers.parameters())
        return Offloaded(layers, *given)

    saved(tmp_path)  # in float32
    monkeypatch.setattr(loading, "Offloaded", offloaded)
    found, expected = loaded(tmp_path, "disk"), loaded(tmp_path, None)
    assert seen == {torch.float32}  # as they are mapped from the checkpoint
    assert found.dtype == found.model.config.dtype == torch.float16
    for own, other in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert own.dtype == torch.float16 and torch.equal(own, other)
    for own, other in zip(found.model.buffers(), expected.model.buffers(), strict=True):
        assert own.dtype == other.dtype and torch.equal(own, other)


def test_weights_that_float16_cannot_hold_are_refused_on_disk_too(tmp_path: Path) -> None:
    change(saved(tmp_path), lambda tensors: tensors[LAYER][0, 0].fill_(1e6))
    for offload in ("disk", None):
        with pytest.raises(PPFError, match=f"infinite values in {LAYER} as torch.float16"):
            loaded(tmp_path, offload)


def test_weights_are_on_the_device_only_while_the_layer_runs(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Offloaded, "_bring", lambda _, weight: weight.clone())  # as to a GPU
    layers, ids = lm.adapter.layers(lm.model), random_windows()
    expected = lm.model(ids).logits
    home = {p: p.data_ptr() for p in layers.parameters()}
    offload(lm, "cpu", tmp_path)
    visiting: list[list[int]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        away = [[p.data_ptr() != home[p] for p in layer.parameters()] for layer in layers]
        assert all(all(moved) or not any(moved) for moved in away)
        visiting.append([number for number, moved in enumerate(away) if any(moved)])

    for coupling in lm.couplings:
        coupling.consumer.register_forward_pre_hook(look)
    assert torch.equal(lm.model(ids).logits, expected)
    assert visiting == [[coupling.layer] for coupling in lm.couplings]
    assert {p: p.data_ptr() for p in layers.parameters()} == home
