"""Makes models of SmolLM2-135M-Instruct with a smaller hidden size.

    python experiments/dimensions/hidden.py outputs/hidden [SIZES, by default 459 405 342]

For each hidden size, four models are written to outputs/hidden/METHOD-SIZE. METHOD is `channels`,
which keeps the channels of the residual stream with the largest activations after its norms
(Minitron, arXiv 2407.14679), or `rotation`, which keeps its principal components (SliceGPT, arXiv
2401.15024); and the same with `-refit`: from the first layer to the last, each projection is fitted
by least squares to the outputs of the dense model. Then rotation-refit-405 is trained on 102 400
tokens, as `recover.py tune.full.embeddings=true` does, to trained-405. What exists stays.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import Fabric
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ppf.artefacts import get_or_make
from ppf.conf import DEFAULT_TEXT, read_option
from ppf.llm import LanguageModel, load
from ppf.progress import track
from ppf.recovery.losses import KL
from ppf.recovery.training import RecoverySettings, TrainerSettings, TrainingRun, Windows
from ppf.recovery.tuners import Full
from ppf.text.parts import build_text
from ppf.text.training import build_training_text

CACHE = str(Path.home() / ".cache" / "ppf")
WINDOWS = 128  # of the calibration part, as many as sequential compensation reads
DAMPING = 1e-3  # of the fits, as a fraction of the mean variance of their inputs
SIZES = (459, 405, 342)  # 80, 70 and 59 % of 576; a size must be a multiple of the 9 heads


def inputs_of_norms(model: LlamaForCausalLM) -> list[tuple[nn.Module, list[nn.Linear]]]:
    """The norms of the residual stream, each with the projections that read it."""
    found = []
    for layer in model.model.layers:
        attention, ffn = layer.self_attn, layer.mlp
        found += [
            (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (layer.post_attention_layernorm, [ffn.gate_proj, ffn.up_proj]),
        ]
    return [*found, (model.model.norm, [model.lm_head])]


def basis(model: LlamaForCausalLM, ids: Tensor, method: str) -> Float[Tensor, "hidden hidden"]:
    """An orthogonal matrix, whose first columns are the directions to keep."""
    hidden = model.config.hidden_size
    score, covariance = torch.zeros(hidden), torch.zeros(hidden, hidden)

    def observe(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal score, covariance
        score += output.abs().mean((0, 1))
        x = (output / norm.weight).flatten(0, 1)
        covariance += x.T @ x

    hooks = [norm.register_forward_hook(observe) for norm, _ in inputs_of_norms(model)]
    for batch in track(ids.split(8), "Observing"):
        model.model(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    if method == "channels":
        return torch.eye(hidden)[:, score.argsort(descending=True)]
    return torch.linalg.eigh(covariance.double())[1].flip(1).float()


def sliced(model: LlamaForCausalLM, kept: Float[Tensor, "hidden size"]) -> LlamaForCausalLM:
    """The model whose residual stream has the given directions only."""
    config = type(model.config).from_dict(model.config.to_dict())
    hidden, size = kept.shape
    config.hidden_size, config.tie_word_embeddings = size, False
    # A norm divides by the mean square of fewer values.
    config.rms_norm_eps *= hidden / size
    small = LlamaForCausalLM(config).eval().requires_grad_(False)
    small.model.embed_tokens.weight.data = model.model.embed_tokens.weight @ kept
    for (norm, readers), (own, fewer) in zip(
        inputs_of_norms(model), inputs_of_norms(small), strict=True
    ):
        own.weight.data.fill_(1)
        for reader, new in zip(readers, fewer, strict=True):
            new.weight.data = reader.weight * norm.weight @ kept * (hidden / size) ** 0.5
    for old, new in zip(model.model.layers, small.model.layers, strict=True):
        new.self_attn.o_proj.weight.data = kept.T @ old.self_attn.o_proj.weight
        new.mlp.down_proj.weight.data = kept.T @ old.mlp.down_proj.weight
    return small


def fit(x: Float[Tensor, "tokens in"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "out in"]:
    """The ridge regression of y on x."""
    square = x.T @ x
    square.diagonal().add_(DAMPING * square.diagonal().mean())
    return torch.linalg.solve(square, x.T @ y).T


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of a module."""
    found = list[Tensor]()
    hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    yield found
    hook.remove()


def in_batches(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a function gives for windows, eight at a time."""
    return torch.cat([call(batch) for batch in x.split(8)])


def refit(model: LlamaForCausalLM, small: LlamaForCausalLM, kept: Tensor, ids: Tensor) -> None:
    """Fits the projections of the small model to the dense one, from front to back."""
    wanted, stream = model.model.embed_tokens(ids), small.model.embed_tokens(ids)
    places = model.model.rotary_emb(wanted[:1], torch.arange(ids.shape[1])[None])

    def blocks(layer: Any) -> list[tuple[Any, list[str], Any, Callable[[Tensor], Tensor]]]:
        attention, ffn = layer.self_attn, layer.mlp

        def attend(x: Tensor) -> Tensor:
            return attention(x, position_embeddings=places, attention_mask=None)[0]

        return [
            (layer.input_layernorm, ["q_proj", "k_proj", "v_proj"], attention, attend),
            (layer.post_attention_layernorm, ["gate_proj", "up_proj"], ffn, ffn),
        ]

    layers = zip(model.model.layers, small.model.layers, strict=True)
    for old_layer, new_layer in track(list(layers), "Fitting"):
        for (norm, names, block, call), (own, _, new, new_call) in zip(
            blocks(old_layer), blocks(new_layer), strict=True
        ):
            x, z = norm(wanted), own(stream)
            for name in names:
                target = getattr(block, name)(x).flatten(0, 1)
                getattr(new, name).weight.data = fit(z.flatten(0, 1), target)
            wanted = wanted + in_batches(call, x)
            last = new.o_proj if names[0] == "q_proj" else new.down_proj
            with recorded(last) as found:
                in_batches(new_call, z)
            # Errors are relative to the norm of the stream, which is very large for a few tokens.
            scale = wanted.norm(dim=-1, keepdim=True)
            last.weight.data = fit(
                (torch.cat(found) / scale).flatten(0, 1),
                ((wanted @ kept - stream) / scale).flatten(0, 1),
            )
            stream = stream + torch.cat([last(x) for x in found])
    x, z = model.model.norm(wanted), small.model.norm(stream)
    small.lm_head.weight.data = model.lm_head.weight @ fit(z.flatten(0, 1), x.flatten(0, 1))


def dense(dtype: str) -> LanguageModel:
    """The model from which the small ones are made, and the teacher."""
    config = read_option("model", "smollm2_135m")
    config.dtype = dtype
    return load(config, CACHE)


def train(start: Path, out: Path) -> None:
    """Trains a model, embeddings too, with the dense one as teacher; a killed training resumes."""
    config, teacher = read_option("text", DEFAULT_TEXT), dense("bfloat16")
    own = build_text(config, CACHE)
    text = build_training_text(config, CACHE, own.parts["test"])
    parts = (text.tokens(part, teacher.tokenizer) for part in ("training", "validation"))
    run = TrainingRun(
        RecoverySettings(tokens=102_400, batch=2, micro_batch=2, validate_every=50),
        TrainerSettings("bf16-mixed", 1.0),
        Fabric(accelerator="cpu", devices=1),
        {"accelerator": "cpu", "devices": 1, "num_nodes": 1},
        out / "training",
        Windows(*parts),
        seed=0,
    )

    def make(folder: Path) -> None:
        small = LlamaForCausalLM.from_pretrained(start).eval().requires_grad_(False)
        Full(2e-4, embeddings=True).tune(small, teacher.model, {"kl": KL(1.0)}, run)
        small.save_pretrained(folder)
        teacher.tokenizer.save_pretrained(folder)

    get_or_make(
        out / start.name.replace("rotation-refit", "trained"), read=lambda made: made, make=make
    )


@torch.inference_mode()
def write(out: Path, sizes: list[int]) -> None:
    """Writes the models that are not trained."""
    lm = dense("float32")
    text = build_text(read_option("text", DEFAULT_TEXT), CACHE)
    ids = text.tokens("calibration", lm.tokenizer)[:WINDOWS]
    for method in ("channels", "rotation"):
        directions = basis(lm.model, ids, method)
        for size in sizes:
            kept = directions[:, :size]
            for name in (method, f"{method}-refit"):

                def make(folder: Path, refitted: bool = name != method, kept: Any = kept) -> None:
                    small = sliced(lm.model, kept)
                    if refitted:
                        refit(lm.model, small, kept, ids)
                    small.save_pretrained(folder)
                    lm.tokenizer.save_pretrained(folder)

                get_or_make(out / f"{name}-{size}", read=lambda folder: folder, make=make)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(folder, [int(size) for size in sys.argv[2:]] or list(SIZES))
    train(folder / "rotation-refit-405", folder)
