"""Size of a model: its parameters and the bytes of its weights."""

from pathlib import Path

from torch import nn


def parameters(model: nn.Module) -> int:
    """Number of parameters; tied parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(folder: Path) -> int:
    """Size of a Hugging Face folder's weight files, in bytes.

    Files of another form that lie beside them, as consolidated.safetensors, do not count.
    """
    files = list(folder.glob("model*.safetensors")) or list(folder.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)
