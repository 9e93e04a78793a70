"""Prunes a model with FLAP's own code. `run.py` starts it in an environment of FLAP's packages.

    python flap.py CODE MODEL TEXT OUT RATIOS

OUT-RATIO.safetensors has the weights that have changed; columns of removed units are zero. The
model has grouped attention, the code has not: each query head gets a copy of its group's K and V.
`run.py` replaces the code's head size, so that its unit is all query heads of a KV group. Of
SmolLM2-135M, a group has the parameters of 512 / 3 channels, as the code counts a head.
"""

import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

code, folder, text, out, *ratios = sys.argv[1:]
sys.path.insert(0, code)
sys.modules["datasets"] = MagicMock()  # no text is downloaded

from lib import prune  # noqa: E402
from models.hf_llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding  # noqa: E402

SAMPLES, LENGTH = 1024, 128  # as in the authors' scripts
UNITS = (("self_attn", "v_proj", "o_proj"), ("mlp", "up_proj", "down_proj"))
KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
)

described = json.loads(Path(folder, "config.json").read_text())
heads, groups = described["num_attention_heads"], described["num_key_value_heads"]
rotary = described["max_position_embeddings"], described["rope_theta"], None
LlamaRotaryEmbedding.__init__.__defaults__ = rotary

model = LlamaForCausalLM(LlamaConfig(**{key: described[key] for key in KEYS})).float().eval()
weights = load_file(Path(folder, "model.safetensors"))
weights = {name: weight.float() for name, weight in weights.items()}
for name, weight in weights.items():
    if "k_proj" in name or "v_proj" in name:
        by_group = weight.view(groups, -1, weight.shape[1])
        weights[name] = by_group.repeat_interleave(heads // groups, 0).reshape(-1, weight.shape[1])
unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
assert not unexpected, unexpected
model.tie_weights()
for layer in model.model.layers:
    torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    torch.nn.init.zeros_(layer.mlp.down_proj.bias)
model.seqlen = LENGTH

# As the code does, windows are drawn at random.
tokens = load_file(text)["calibration"]
random.seed(0)
starts = [random.randint(0, len(tokens) - LENGTH - 1) for _ in range(SAMPLES)]
windows = [(tokens[None, start : start + LENGTH],) for start in starts]
prune.get_loaders = lambda *args, **kwargs: (windows, None)


class Statistics(prune.BiasGPT):
    """The code's statistics of a projection's inputs, which are kept for the next ratio."""

    def free(self):
        """Forgets nothing."""


known: dict[torch.nn.Module, Statistics] = {}
prune.BiasGPT = lambda layer, metric: known.setdefault(layer, Statistics(layer, metric))

# Products of matrices in bfloat16, their sums in float32.
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
for ratio in ratios:
    model.load_state_dict(weights, strict=False)
    given = {"metrics": "WIFV", "structure": "AL-AM", "seed": 0, "unstr": True, "remove_heads": -1}
    args = SimpleNamespace(**given, nsamples=len(windows), pruning_ratio=float(ratio))
    prune.prune_flap(args, model, None, torch.device("cpu"))
    windows = []  # they are read once

    changed = {}
    for number, layer in enumerate(model.model.layers):
        # The code sets rows of what it removes to zero, so that the outputs of these units are 0.
        for block, inner, outer in UNITS:
            module, name = getattr(layer, block), f"model.layers.{number}.{block}.{outer}"
            kept = getattr(module, inner).weight.any(1)
            changed[f"{name}.weight"] = (getattr(module, outer).weight * kept).detach()
            changed[f"{name}.bias"] = getattr(module, outer).bias.detach().clone()
    cost = {"tokens": str(SAMPLES * LENGTH), "seconds": str(round(time.process_time()))}
    save_file(changed, f"{out}-{ratio}.safetensors", cost)
