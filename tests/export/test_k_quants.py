"""K-quants, with the library of the npm package that the tests of llama.cpp install."""

import ctypes
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, dequantize
from transformers import LlamaConfig, Qwen3Config

from benchmarks.llama_cpp import LlamaCpp
from ppf.errors import PPFError
from ppf.export import Pruned, k_quants, load_folder, round_weights
from ppf.export.gguf import GGUF
from ppf.export.gguf_tensors import file_bytes
from ppf.pruning import LivePruner
from ppf.pruning.compensation import NoCompensation
from tests.checkpoints import pruner_of, random_model, random_windows, sizes
from tests.export.conftest import POLICY, export_folder, export_gguf

TYPES = ("q4_k_m", "q5_k_m", "q6_k")


def missing(name: str) -> None:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize("type", TYPES)
def test_without_the_package_one_sentence_says_what_to_install(
    type: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k_quants, "distribution", missing)
    with pytest.raises(PPFError, match="pip install llama-cpp-python"):
        GGUF(type, 0)
    with pytest.raises(PPFError, match="pip install llama-cpp-python"):
        GGUF("q4_0", 8)


@pytest.fixture
def installed(llama_cpp: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if llama-cpp-python were installed, which keeps the same library in its folder lib."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "lib").symlink_to(llama_cpp.libraries)
    places = SimpleNamespace(locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(k_quants, "distribution", lambda name: places)


@pytest.fixture
def pruner() -> LivePruner:
    return uneven(LlamaConfig)


def uneven(family: Any) -> LivePruner:
    """Layers of 512 channels or other multiples of 64."""
    config = family(**sizes(256, 8, 512, 4, tied=True) | {"num_hidden_layers": 9}, head_dim=32)
    pruner = pruner_of(random_model(config), NoCompensation(), channel_multiple=64)
    pruner.apply([3, 8, 4, 6, 1, 5, *pruner.space.dense.tolist()[6:]])
    return pruner


def types(file: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in GGUFReader(file).tensors}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "type"), [*((LlamaConfig, type) for type in TYPES), (Qwen3Config, "q4_k_m")]
)
def test_a_file_is_that_of_llama_cpps_own_tool(
    family: Any, type: Any, installed: None, llama_cpp: LlamaCpp, tmp_path: Path
) -> None:
    pruner = uneven(family)  # Qwen 3 is written as openelm, whose projections are fused
    plain = export_gguf(pruner, tmp_path, POLICY, type="f16")
    own = quantised(plain, tmp_path / "own.gguf", type, llama_cpp.libraries)
    model = pruner.lm.model
    with torch.no_grad():  # what the tool reads
        for parameter in (p for p in model.parameters() if p.ndim > 1):
            parameter.copy_(parameter.half())
    file = export_gguf(pruner, tmp_path, POLICY, type=type)
    expected = {tensor.name: tensor for tensor in GGUFReader(own).tensors}
    found = GGUFReader(file).tensors
    assert types(file) == types(own)
    for tensor in found:
        np.testing.assert_array_equal(tensor.data, expected[tensor.name].data)
    folder = export_folder(pruner, tmp_path / "folder", POLICY)
    loaded: Any = load_folder(folder, torch.float32)[0]
    assert file_bytes(loaded, type) == sum(tensor.n_bytes for tensor in found)
    round_weights(loaded, type)
    rounded = loaded.model.layers[1].mlp.down_proj.weight
    (stored,) = (tensor for tensor in found if tensor.name == "blk.1.ffn_down.weight")
    values = torch.tensor(dequantize(stored.data, stored.tensor_type))
    torch.testing.assert_close(values, rounded, atol=0, rtol=0)


def quantised(file: Path, out: Path, type: str, libraries: Path) -> Path:
    """The file that llama.cpp's tool makes, by the function that the tool calls."""

    class Parameters(ctypes.Structure):
        _fields_ = (
            ("threads", ctypes.c_int32),
            ("file_type", ctypes.c_int),
            ("rest", ctypes.c_byte * 256),
        )

    ctypes.CDLL(str(libraries / "libggml-base.so"), ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(next(libraries.glob("libllama.v*.so"))))
    llama.llama_model_quantize_default_params.restype = Parameters
    given = llama.llama_model_quantize_default_params()
    given.threads, given.file_type = 1, LlamaFileType[f"MOSTLY_{type.upper()}"]
    llama.llama_model_quantize.restype = ctypes.c_uint32
    assert llama.llama_model_quantize(bytes(file), bytes(out), ctypes.byref(given)) == 0
    return out


@pytest.mark.slow
def test_an_importance_matrix_lowers_the_error_of_what_matters(
    pruner: LivePruner, installed: None, tmp_path: Path
) -> None:
    model, windows = Pruned.of(pruner), random_windows()
    exporter = GGUF("q4_k_m", len(windows)).weighted(model, lambda: ~windows)  # marked
    squares, name = exporter.importance or {}, "blk.2.ffn_up.weight"
    linear = pruner.lm.model.model.layers[2].mlp.up_proj
    seen = list[torch.Tensor]()
    linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pruner.lm.model(windows)
    torch.testing.assert_close(squares[name], seen[0].flatten(0, -2).square().mean(0))

    squares[name][:] = 1e-6
    squares[name][:8] = 1.0  # only these columns matter
    files = {
        "weighted": exporter.write(model, tmp_path / "weighted", POLICY),
        "plain": GGUF("q4_k_m", 0).write(model, tmp_path / "plain", POLICY),
    }
    errors = {}
    for kind, file in files.items():
        (stored,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == name)
        assert stored.tensor_type == GGMLQuantizationType.Q4_K
        values = torch.tensor(dequantize(stored.data, stored.tensor_type))
        errors[kind] = float((values - linear.weight)[:, :8].square().mean())
    assert errors["weighted"] < 0.7 * errors["plain"]


@pytest.mark.slow
def test_the_size_of_k_quants_is_not_told_before_the_search(
    pruner: LivePruner, installed: None
) -> None:
    with pytest.raises(PPFError, match="depends on the widths.* give ratio= in place of target="):
        GGUF("q4_k_m", 0).bytes_per_weight(pruner.lm.model)
