"""The script that runs the methods of experiments/peers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from experiments.peers import run as peers


def test_what_a_method_keeps_is_counted_and_a_part_of_a_kv_group_is_no_policy() -> None:
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 8}
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, **shape)
    inner = torch.ones(32, 32)
    inner[:, 16:] = 0  # the second KV group
    outer = torch.ones(32, 8)
    outer[:, :2] = 0
    named = {"self_attn.o_proj": inner, "mlp.down_proj": outer}
    weights = {f"model.layers.0.{name}.weight": weight for name, weight in named.items()}
    # Q, K, V and O have 96 rows or columns, half of which are removed; the FFN has 24.
    assert peers.removed_share(weights, config) == pytest.approx((48 + 6) / (96 + 24))
    units = {"0.attention": 2, "0.mlp": 4}
    assert peers.widths(weights, config, units) == {"0.attention": 1, "0.mlp": 3}
    inner[:, :8] = 0
    with pytest.raises(SystemExit, match="layer 0 keeps a part of a KV group"):
        peers.widths(weights, config, units)


def test_code_of_another_commit_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text("size = 128\n")
    peer = replace(peers.PEERS["flap"], changes={"a.py": {r"\b128\b": "192"}})
    peers.fetch_code(peer, str(source), tmp_path / "patched")
    assert (tmp_path / "patched" / "a.py").read_text() == "size = 192\n"
    other = replace(peer, changes={"a.py": {"half": "float32"}})
    with pytest.raises(SystemExit, match="has no half"):
        peers.fetch_code(other, str(source), tmp_path / "other")
