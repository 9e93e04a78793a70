"""K-quants: number formats of GGUF files whose weights llama.cpp's own code rounds."""

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm.marked import tokens_of
from ppf.pruning.rounding import BLOCK_BYTES

MIXTURES = {"q4_k_m": ("q4_k", "q6_k"), "q5_k_m": ("q5_k", "q6_k"), "q6_k": ("q6_k", "q6_k")}
"""Format of most matrices, and that of value and down projections in about half of the layers."""
FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""llama.cpp's formats for matrices whose rows have no whole blocks of 256 weights."""


def library() -> Path:
    """llama.cpp's library of number formats, or a PPFError if its package is not installed."""
    found = list[Path]()
    with suppress(PackageNotFoundError):
        folder = distribution("llama-cpp-python").locate_file("llama_cpp/lib")
        found = sorted(Path(str(folder)).glob("*ggml-base.*"))
    if not found:
        raise PPFError(
            f"export.type={'|'.join(MIXTURES)} and export.importance_windows need llama.cpp's code:"
            " pip install llama-cpp-python, or give export.type=q8_0, q5_0 or q4_0."
        )
    return found[0]


@cache
def _rounding(file: Path) -> Any:
    function = ctypes.CDLL(str(file)).ggml_quantize_chunk
    matrix, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, matrix, matrix, count, count, count, matrix]
    return function


def quantized(
    tensor: Tensor, kind: GGMLQuantizationType, squares: Float[Tensor, " columns"] | None = None
) -> np.ndarray:
    """A tensor as a file stores it; matrices are [rows, bytes of a row].

    Args:
        squares: llama.cpp's importance matrix, the weights of the columns' squared errors.
    """
    values = np.ascontiguousarray(tensor.float().numpy(force=True))
    own = kind == GGMLQuantizationType.F32 or kind.name.lower() in BLOCK_BYTES
    if own and (squares is None or kind == GGMLQuantizationType.F16):
        return gguf.quants.quantize(values, kind)
    made = np.empty(gguf.quant_shape_to_byte_shape(values.shape, kind), np.uint8)
    weights = None if squares is None else squares.float().numpy(force=True)
    given = None if weights is None else weights.ctypes.data
    function, (rows, columns) = _rounding(library()), values.shape
    step = -(-rows // torch.get_num_threads())

    def make(first: int) -> None:
        place = kind, values.ctypes.data, made.ctypes.data, first * columns
        function(*place, min(step, rows - first), columns, given)

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(0, rows, step)))
    return made


@torch.no_grad()
def input_squares(
    model: nn.Module, windows: Int[Tensor, "windows window"]
) -> Mapping[str, Float[Tensor, " columns"]]:
    """The mean square of each input of the linear layers, by the names of their weights."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        sums[name] = sums.get(name, 0) + inputs[0].flatten(0, -2).float().square().sum(0)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_pre_hook(partial(add, f"{name}.weight"))
                hooks.callback(hook.remove)
        for window in windows:
            ids = tokens_of(window[None]).to(next(model.parameters()).device)
            model(ids, use_cache=False)
    return {name: total / windows.numel() for name, total in sums.items()}
