"""Prunes a model with GRASPrune's own code; `run.py` starts it in an environment of its packages.

    python grasprune.py CODE MODEL TEXT OUT RATIOS

OUT-RATIO.safetensors has the weights that have changed; columns of removed units are zero. The
gates are trained on the calibration part, and the scales of what stays on the labelling part.
"""

import sys
import time
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM  # noqa: F401  (looks for packages: before the mocks)

code, folder, text, out, *ratios = sys.argv[1:]
sys.path.insert(0, code)
for unused in ("datasets", "datasets.utils", "datasets.utils.logging", "evals"):
    sys.modules[unused] = MagicMock()  # no text is downloaded, no task is run

import pipeline  # noqa: E402
from config import PruningConfig  # noqa: E402

WINDOWS = 48  # of 512 tokens; the authors' default is 512
streams = load_file(text)
parts = {"train": streams["calibration"], "validation": streams["labelling"]}
changed: dict[str, torch.Tensor] = {}


def blocks(tokens, tokenizer, size):
    """The windows of a part, as the code's own data set has them."""
    whole = tokens[: len(tokens) // size * size].view(-1, size)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in whole]


def scattered(weight, kept, dim):
    """A weight in its original size, with zeros in place of what was removed."""
    shape = list(weight.shape)
    shape[dim] = len(kept)
    return torch.zeros(shape, dtype=weight.dtype).index_copy(dim, kept.nonzero()[:, 0], weight)


def materialize(model):
    """As the code does it; also notes what has changed."""
    layers = pipeline.get_transformer_layers(model)
    channels = [layer.mlp.eval_keep_mask.bool() for layer in layers]
    groups = [layer.self_attn.eval_keep_mask_kv.bool() for layer in layers]
    materialize_all_pruning(model)
    size = model.config.hidden_size // model.config.num_attention_heads
    for number, layer in enumerate(layers):
        name, attention = f"model.layers.{number}", layer.self_attn
        rows = groups[number].repeat_interleave(size)
        queries = model.config.num_attention_heads // len(groups[number])
        columns = groups[number].repeat_interleave(size * queries)
        found = {
            "mlp.down_proj": scattered(layer.mlp.down_proj.weight, channels[number], 1),
            "self_attn.k_proj": scattered(attention.k_proj.weight, rows, 0),
            "self_attn.v_proj": scattered(attention.v_proj.weight, rows, 0),
            "self_attn.o_proj": scattered(attention.o_proj.weight, columns, 1),
        }
        changed.update({f"{name}.{key}.weight": value.detach() for key, value in found.items()})


materialize_all_pruning = pipeline.materialize_all_pruning
pipeline.materialize_all_pruning = materialize
pipeline.export_pruned_state_dict_safetensors = lambda model, path: None
pipeline.load_text_dataset = lambda name, split: parts[split]
pipeline.TokenBlockDataset = blocks
pipeline.AutoTokenizer = MagicMock()
for ratio in ratios:
    started = time.process_time()
    config = PruningConfig(
        model_id=folder,
        model_family="llama",
        device="cpu",
        keep_ratio=1 - float(ratio),
        num_samples=WINDOWS,
        rescale_num_samples=WINDOWS,
        run_acc_eval=False,
        output_dir=f"{out}-{ratio}.report",
    )
    pipeline.run_pruning_pipeline(config)
    steps = WINDOWS * (config.epochs + config.rescale_epochs)
    passes = 3 * steps * config.max_len  # a backward pass counts as two forward passes
    cost = {"tokens": str(passes), "seconds": str(round(time.process_time() - started))}
    save_file(changed, f"{out}-{ratio}.safetensors", cost)
