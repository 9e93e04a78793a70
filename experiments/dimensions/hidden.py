"""Makes models of SmolLM2-135M-Instruct with a smaller hidden size.

    python experiments/dimensions/hidden.py outputs/hidden

For each hidden size, four models are written to outputs/hidden/METHOD-SIZE. METHOD is `channels`,
which keeps the channels of the residual stream with the largest activations after its norms
(Minitron, arXiv 2407.14679), or `rotation`, which keeps its principal components (SliceGPT, arXiv
2401.15024); and the same with `-refit`: from the first layer to the last, each projection is fitted
by least squares to the outputs of the dense model. Then rotation-refit-405 is trained on 102 400
tokens, as `recover.py tune.full.embeddings=true` does, to trained-405. What exists stays, and a
killed training resumes.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from experiments.experts.make import dense, read, training
from ppf.artefacts import get_or_make
from ppf.llm import LanguageModel
from ppf.progress import track
from ppf.recovery.losses import KL
from ppf.recovery.tuners import Full

WINDOWS = 128  # of the calibration part, as many as sequential compensation reads
BATCH = 8  # windows that run at once
DAMPING = 1e-3  # of the fits, as a fraction of the mean variance of their inputs; not tuned
SIZES = (459, 405, 342)  # 80, 70 and 59 % of 576; a size must be a multiple of the 9 heads


class Block(NamedTuple):
    """An attention block or FFN, the norm before it, its first projections and its last one."""

    norm: nn.Module
    block: nn.Module
    first: list[nn.Linear]
    last: nn.Linear

    def __call__(self, x: Tensor, places: Any) -> Tensor:
        """What the block adds to the stream, from the norm's output [windows, window, hidden]."""
        if isinstance(self.block, LlamaAttention):
            run = partial(self.block, position_embeddings=places, attention_mask=None)
            return torch.cat([run(part)[0] for part in x.split(BATCH)])
        return torch.cat([self.block(part) for part in x.split(BATCH)])


def blocks(model: LlamaForCausalLM) -> list[Block]:
    """All blocks, from front to back."""
    found = []
    for layer in model.model.layers:
        attention, ffn = layer.self_attn, layer.mlp
        first = [attention.q_proj, attention.k_proj, attention.v_proj]
        found += [
            Block(layer.input_layernorm, attention, first, attention.o_proj),
            Block(layer.post_attention_layernorm, ffn, [ffn.gate_proj, ffn.up_proj], ffn.down_proj),
        ]
    return found


def bases(
    model: LlamaForCausalLM, ids: Int[Tensor, "windows window"]
) -> dict[str, Float[Tensor, "hidden hidden"]]:
    """An orthogonal matrix for each method, whose first columns are the directions to keep."""
    hidden = model.config.hidden_size
    sizes, covariance = torch.zeros(hidden), torch.zeros(hidden, hidden)

    def observe(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.add_(output.abs().mean((0, 1)))
        x = (output / norm.weight).flatten(0, 1)
        covariance.addmm_(x.T, x)

    norms = [*(block.norm for block in blocks(model)), model.model.norm]
    hooks = [norm.register_forward_hook(observe) for norm in norms]
    for batch in track(ids.split(BATCH), "Observing"):
        model.model(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {
        "channels": torch.eye(hidden)[:, sizes.argsort(descending=True)],
        "rotation": torch.linalg.eigh(covariance.double())[1].flip(1).float(),
    }


def sliced(model: LlamaForCausalLM, kept: Float[Tensor, "hidden size"]) -> LlamaForCausalLM:
    """The model whose residual stream has the given directions only."""
    config = type(model.config).from_dict(model.config.to_dict())
    hidden, size = kept.shape
    config.hidden_size, config.tie_word_embeddings = size, False
    # A norm divides by the mean square of fewer values.
    config.rms_norm_eps *= hidden / size
    small = LlamaForCausalLM(config).eval().requires_grad_(False)

    def narrow(reader: nn.Linear, norm: Any) -> Tensor:
        return reader.weight * norm.weight @ kept * (hidden / size) ** 0.5

    small.model.embed_tokens.weight.data = model.model.embed_tokens.weight @ kept
    for old, new in zip(blocks(model), blocks(small), strict=True):
        new.norm.weight.data.fill_(1)
        for before, after in zip(old.first, new.first, strict=True):
            after.weight.data = narrow(before, old.norm)
        new.last.weight.data = kept.T @ old.last.weight
    small.model.norm.weight.data.fill_(1)
    small.lm_head.weight.data = narrow(model.lm_head, model.model.norm)
    return small


def fit(x: Float[Tensor, "... in"], y: Float[Tensor, "... out"]) -> Float[Tensor, "out in"]:
    """The ridge regression of y on x, over all tokens."""
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    square = x.T @ x
    square.diagonal().add_(DAMPING * square.diagonal().mean())
    return torch.linalg.solve(square, x.T @ y).T


def refit(
    model: LlamaForCausalLM,
    small: LlamaForCausalLM,
    kept: Float[Tensor, "hidden size"],
    ids: Int[Tensor, "windows window"],
) -> None:
    """Fits the projections of the small model to the dense one, from front to back."""
    wanted, stream = model.model.embed_tokens(ids), small.model.embed_tokens(ids)
    places = model.model.rotary_emb(wanted[:1], torch.arange(ids.shape[1])[None])
    pairs = zip(blocks(model), blocks(small), strict=True)
    for old, new in track([*pairs], "Fitting"):
        x, z = old.norm(wanted), new.norm(stream)
        for before, after in zip(old.first, new.first, strict=True):
            after.weight.data = fit(z, before(x))
        wanted = wanted + old(x, places)
        inputs = list[Tensor]()
        hook = new.last.register_forward_pre_hook(lambda _, given, seen=inputs: seen.append(*given))
        new(z, places)
        hook.remove()
        # Errors are relative to the norm of the stream, which is very large for a few tokens.
        scale, inner = wanted.norm(dim=-1, keepdim=True), torch.cat(inputs)
        new.last.weight.data = fit(inner / scale, (wanted @ kept - stream) / scale)
        stream = stream + new.last(inner)
    x, z = model.model.norm(wanted), small.model.norm(stream)
    small.lm_head.weight.data = model.lm_head.weight @ fit(z, x)


@torch.inference_mode()
def write(lm: LanguageModel, kept: Tensor, ids: Tensor | None, folder: Path) -> None:
    """Writes a model with the directions `kept`; with `ids` it is refitted."""
    small = sliced(lm.model, kept)
    if ids is not None:
        refit(lm.model, small, kept, ids)
    save(small, lm, folder)


def train(lm: LanguageModel, start: Path, checkpoints: Path, folder: Path) -> None:
    """Trains the model of a folder, embeddings too, with the dense one as teacher."""
    small = LlamaForCausalLM.from_pretrained(start).eval().requires_grad_(False)
    run = training(102_400, checkpoints, read()[0])
    Full(1e-3, embeddings=True).tune(small, dense("bfloat16").model, {"kl": KL(1.0)}, run)
    save(small, lm, folder)


def save(small: LlamaForCausalLM, lm: LanguageModel, folder: Path) -> None:
    """Writes a model with the dense one's tokenizer."""
    small.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def main(out: Path) -> None:
    """Writes all models."""
    lm, ids = dense("float32"), read()[1][:WINDOWS]
    with torch.inference_mode():
        directions = bases(lm.model, ids)
    for method, basis in directions.items():
        for size in SIZES:
            for name, text in ((method, None), (f"{method}-refit", ids)):
                make = partial(write, lm, basis[:, :size], text)
                get_or_make(out / f"{name}-{size}", read=Path, make=make)
    make = partial(train, lm, out / "rotation-refit-405", out / "training")
    get_or_make(out / "trained-405", read=Path, make=make)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
