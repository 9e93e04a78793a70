"""K-quants: number formats of GGUF files whose weights llama.cpp's own code rounds."""

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.pruning.rounding import BLOCK_BYTES

MIXTURES = {"q4_k_m": ("q4_k", "q6_k"), "q5_k_m": ("q5_k", "q6_k"), "q6_k": ("q6_k", "q6_k")}
"""Format of most matrices, and that of value and down projections in about half of the layers."""
FALLBACKS = {
    GGMLQuantizationType.Q4_K: GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_K: GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q6_K: GGMLQuantizationType.Q8_0,
}
"""llama.cpp's formats for matrices whose rows have no whole blocks of 256 weights."""


def library() -> Path:
    """llama.cpp's library of number formats, from the package llama-cpp-python.

    Raises:
        PPFError: the package is not installed.
    """
    package = find_spec("llama_cpp")
    places = (package and package.submodule_search_locations) or []
    found = [file for place in places for file in Path(place, "lib").glob("*ggml-base.*")]
    if not found:
        raise PPFError(
            f"export.type={'|'.join(MIXTURES)} needs the package llama-cpp-python, which brings"
            " llama.cpp's code: pip install llama-cpp-python, or give export.type=q8_0, q5_0 or"
            " q4_0."
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
        tensor: its rows have whole blocks of the format.
        squares: llama.cpp's importance matrix, the weights of the columns' squared errors.
    """
    values = np.ascontiguousarray(tensor.float().numpy(force=True))
    own = kind == GGMLQuantizationType.F32 or kind.name.lower() in BLOCK_BYTES
    if own and (squares is None or kind == GGMLQuantizationType.F16):
        return gguf.quants.quantize(values, kind)
    made = np.empty(gguf.quant_shape_to_byte_shape(values.shape, kind), np.uint8)
    weights = None if squares is None else squares.float().numpy(force=True).ctypes.data
    function, (rows, columns) = _rounding(library()), values.shape
    threads = torch.get_num_threads()
    step = -(-rows // threads)

    def make(first: int) -> None:
        place = kind, values.ctypes.data, made.ctypes.data, first * columns
        function(*place, min(step, rows - first), columns, weights)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(make, range(0, rows, step)))
    return made


@torch.no_grad()
def input_squares(
    model: nn.Module, windows: Int[Tensor, "windows window"]
) -> Mapping[str, Float[Tensor, " columns"]]:
    """The mean square of each input of the linear layers, by the names of their weights."""
    sums: dict[str, Tensor] = {}

    def observe(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
            found = inputs[0].flatten(0, -2).float().square().sum(0)
            sums[name] = sums[name] + found if name in sums else found

        return add

    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(observe(f"{n}.weight")) for n, m in linear]
    try:
        for window in windows:
            model(window[None].to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / windows.numel() for name, total in sums.items()}
