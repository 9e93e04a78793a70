"""Makes a mixture of experts of SmolLM2-135M-Instruct, as a Mixtral checkpoint.

    python experiments/experts/make.py outputs/models [NAMES, by default all]

The channels of each FFN are divided into clusters of channels that are active at the same tokens:
the experts. A router starts from a least-squares fit of the norms of their outputs. Then all
weights but the embeddings are trained on the training part of the default text (no test document
is among them), with the dense model as teacher. The model NAME is written to outputs/models/NAME,
its `training.json` has losses on the validation part. The same command resumes a killed training
from its last checkpoint.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning import Fabric
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from ppf.artefacts import get_or_make, write_json
from ppf.conf import DEFAULT_TEXT, read_option
from ppf.evaluation.perplexity import mean_nll
from ppf.llm import LanguageModel, load
from ppf.progress import say, track
from ppf.recovery.losses import KL, CrossEntropy
from ppf.recovery.training import RecoverySettings, TrainerSettings, TrainingRun, Windows
from ppf.recovery.tuners import Full
from ppf.text.parts import build_text
from ppf.text.training import build_training_text

CACHE = str(Path.home() / ".cache" / "ppf")
RATE, BATCH = 2.5e-4, 2  # relative learning rate (3e-4), and windows in a step
ROUNDS = 5  # of the clustering
RIDGE = 1e-3  # of the router's fit, as a fraction of the mean variance of its inputs
DAMPING = 0.03  # the same, of the last projections' fit
SPREAD = 0.1  # standard deviation of the router's first scores of a token; small: equal weights
OBSERVED = 16  # windows of calibration text from which the experts are made


class Shape(NamedTuple):
    """A mixture: number of experts, how many of them a token uses, and tokens of its training."""

    experts: int
    top_k: int
    tokens: int


SHAPES = {"experts16": Shape(16, 12, 102_400), "experts16_long": Shape(16, 12, 614_400)}


class RoutedFFN(nn.Module):
    """An FFN whose channels are experts, one expert's channels after another's.

    It computes every channel, so it trains as fast as a dense FFN. It is the function of
    Mixtral's block with the same weights.
    """

    def __init__(self, ffn: Any, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = ffn.gate_proj, ffn.up_proj, ffn.down_proj
        self.act_fn, self.top_k = ffn.act_fn, shape.top_k
        self.router = nn.Linear(ffn.gate_proj.in_features, shape.experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output for hidden states [..., hidden]."""
        return self.down_proj(self.routed(x))

    def channels(self, x: Tensor) -> Tensor:
        """The channels [..., channels], before the router's weights multiply them."""
        return self.act_fn(self.gate_proj(x)) * self.up_proj(x)

    def routed(self, x: Tensor) -> Tensor:
        """The inputs of the last projection, [..., channels]."""
        largest, chosen = self.router(x).float().topk(self.top_k, -1)
        shape = *x.shape[:-1], self.router.out_features
        weights = torch.zeros(shape).scatter(-1, chosen, largest.softmax(-1)).to(x.dtype)
        channels = self.channels(x).unflatten(-1, (shape[-1], -1))
        return (channels * weights[..., None]).flatten(-2)


def with_experts(model: PreTrainedModel, shape: Shape) -> None:
    """Replaces the FFNs of a Llama-like model."""
    for layer in model.get_decoder().layers:
        layer.mlp = RoutedFFN(layer.mlp, shape)


def clusters(
    channels: Float[Tensor, "tokens channels"], experts: int
) -> Int[Tensor, "experts channels"]:
    """Balanced k-means of channels by the correlation of their absolute values over tokens.

    The values of a token are relative to their norm, which is very large for a few tokens.
    """
    sizes = nn.functional.normalize(channels.abs())
    profiles = nn.functional.normalize((sizes - sizes.mean(0)).T)
    each = len(profiles) // experts
    generator = torch.Generator().manual_seed(0)
    groups = torch.randperm(len(profiles), generator=generator).view(experts, -1)
    for _ in range(ROUNDS):
        centres = nn.functional.normalize(profiles[groups].mean(1))
        likeness = (profiles @ centres.T).repeat_interleave(each, 1)  # one column for each place
        places = linear_sum_assignment(likeness.numpy(), maximize=True)[1]
        groups = torch.from_numpy(np.argsort(places)).view(experts, -1)
    return groups


def fitted_router(
    x: Float[Tensor, "tokens hidden"], norms: Float[Tensor, "tokens experts"]
) -> Float[Tensor, "experts hidden"]:
    """Least-squares fit of relative norms, scaled so that the scores differ by `SPREAD`."""
    square = x.T @ x
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    router = torch.linalg.solve(square, x.T @ (norms / norms.mean(1, keepdim=True) - 1)).T
    return router * (SPREAD / (x @ router.T).std(1).mean())


def divide(ffn: RoutedFFN, x: Tensor, before: Tensor, after: Tensor) -> None:
    """Makes the experts and the router of an FFN, and refits the last projection to the experts.

    Errors are relative to the norm of a token's hidden state, which is very large for a few tokens.

    Args:
        x: inputs, [tokens, hidden].
        before: hidden states to which the output is added, [tokens, hidden].
        after: what they should be then.
    """
    experts, down = ffn.router.out_features, ffn.down_proj.weight.data
    channels = ffn.channels(x)
    groups = clusters(channels, experts)
    norms = torch.stack([(channels[:, own] @ down[:, own].T).norm(dim=1) for own in groups], 1)
    for part in (ffn.gate_proj, ffn.up_proj):
        part.weight.data = part.weight.data[groups.flatten()]
    ffn.router.weight.data = fitted_router(x, norms)
    # A router's weights of a token have the sum 1.
    down = down[:, groups.flatten()] * ffn.top_k
    scale = after.norm(dim=1, keepdim=True)
    routed = ffn.routed(x) / scale
    gram = routed.T @ routed
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    error = (after - before) / scale - routed @ down.T
    ffn.down_proj.weight.data = down + torch.linalg.solve(gram, routed.T @ error).T


@torch.inference_mode()
def split(model: PreTrainedModel, ids: Int[Tensor, "windows window"], shape: Shape) -> None:
    """Replaces the FFNs of a Llama-like model by mixtures, which are not trained yet.

    Layer by layer, the stream of the mixtures is brought back to that of the dense model.
    """
    decoder = model.get_decoder()
    wanted, before, hooks = list[Tensor](), list[Tensor](), []
    for layer in decoder.layers:
        hooks.append(layer.register_forward_hook(lambda _, inputs, output: wanted.append(output)))
    decoder(ids, use_cache=False)
    places = iter(track(range(len(decoder.layers)), "Dividing"))

    def start(ffn: RoutedFFN, inputs: tuple[Tensor, ...]) -> None:
        states = inputs[0], before.pop(), wanted[next(places)]
        divide(ffn, *(x.flatten(0, 1) for x in states))

    with_experts(model, shape)
    for layer in decoder.layers:
        norm = layer.post_attention_layernorm
        hooks.append(norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0])))
        hooks.append(layer.mlp.register_forward_pre_hook(start))
    decoder(ids, use_cache=False)
    for hook in hooks:
        hook.remove()


def as_mixtral(model: PreTrainedModel, shape: Shape) -> MixtralForCausalLM:
    """The model in Mixtral's class."""
    config = model.config.to_dict()
    known = {key: config[key] for key in MixtralConfig().to_dict() if key in config}
    for key in ("model_type", "architectures", "transformers_version"):
        known.pop(key, None)
    known["intermediate_size"] //= shape.experts
    own = {"num_local_experts": shape.experts, "num_experts_per_tok": shape.top_k}
    made = MixtralForCausalLM(MixtralConfig(**known | own)).to(model.dtype)
    pairs = zip(model.get_decoder().layers, made.model.layers, strict=True)
    state = {name: x for name, x in model.state_dict().items() if ".mlp." not in name}
    for number, (old, _) in enumerate(pairs):
        gate, up, down = (
            part.weight.data.unflatten(dim, (shape.experts, -1))
            for part, dim in ((old.mlp.gate_proj, 0), (old.mlp.up_proj, 0), (old.mlp.down_proj, 1))
        )
        place = f"model.layers.{number}.mlp"
        state[f"{place}.gate.weight"] = old.mlp.router.weight.data
        state[f"{place}.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        state[f"{place}.experts.down_proj"] = down.transpose(0, 1).contiguous()
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def read() -> tuple[Windows, Int[Tensor, "windows window"]]:
    """What the training reads, and the calibration windows."""
    config = read_option("text", DEFAULT_TEXT)
    tokenizer = dense("auto").tokenizer
    own = build_text(config, CACHE)
    text = build_training_text(config, CACHE, own.parts["test"])
    parts = (text.tokens(part, tokenizer) for part in ("training", "validation"))
    return Windows(*parts), own.tokens("calibration", tokenizer)


def dense(dtype: str) -> LanguageModel:
    """The model that is split, and the teacher."""
    config = read_option("model", "smollm2_135m")
    config.dtype = dtype
    return load(config, CACHE)


def training(tokens: int, folder: Path, windows: Windows) -> TrainingRun:
    """A training on one CPU, whose checkpoints lie in the folder."""
    return TrainingRun(
        RecoverySettings(tokens, BATCH, BATCH, validate_every=50),
        TrainerSettings("bf16-mixed", 1.0),
        Fabric(accelerator="cpu", devices=1),
        {"accelerator": "cpu", "devices": 1, "num_nodes": 1},
        folder,
        windows,
        seed=0,
    )


def make(name: str, folder: Path) -> None:
    """Trains a mixture and writes it, unless that is done."""
    if (folder / name / "training.json").exists():
        return
    shape, (windows, calibration) = SHAPES[name], read()
    teacher, lm = dense("bfloat16"), dense("float32")
    run = training(shape.tokens, folder / f"{name}-training", windows)

    def divided(file: Path) -> None:
        given = dense("float32").model
        losses = {"dense": mean_nll(teacher.model, windows.validation, batch=8)}
        split(given, calibration[:OBSERVED], shape)
        losses["split"] = mean_nll(given, windows.validation, batch=8)
        torch.save((losses, given.state_dict()), file)

    read_split = partial(torch.load, weights_only=True, mmap=True)
    losses, state = get_or_make(run.folder / "split.pt", read=read_split, make=divided)
    report = shape._asdict() | losses
    say(f"{name}: {json.dumps(report)}")
    with_experts(lm.model, shape)
    lm.model.load_state_dict(state)
    goals = {"kl": KL(1.0), "ce": CrossEntropy(1.0)}
    Full(RATE, embeddings=False).tune(lm.model, teacher.model, goals, run)
    as_mixtral(lm.model, shape).save_pretrained(folder / name)
    lm.tokenizer.save_pretrained(folder / name)
    report["trained"] = mean_nll(lm.model, windows.validation, batch=8)
    print(name, json.dumps(report))
    write_json(folder / name / "training.json", report)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SHAPES:
        make(chosen, Path(sys.argv[1]))
