import pytest
import torch

from ppf.llm import loading
from ppf.llm.loading import resolve_dtype


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
