import copy

import pytest
import torch
from torch import Tensor
from torch.backends import mkldnn
from transformers import PreTrainedModel

from ppf.pruning.compensation import Bias
from ppf.pruning.elastic import Adapters
from ppf.pruning.live import LivePruner
from ppf.runtime import DecodingBatch
from ppf.runtime.decoding import decode_fast
from tests.checkpoints import CHECKPOINTS, each, policies, pruner_of, random_model

PROMPTS = [torch.tensor(ids) for ids in ([5], [3, 2, 1, 9, 8, 7, 6], [6, 7, 8, 9])]


def decoded(model: PreTrainedModel, prompts: list[Tensor], steps: int) -> tuple[Tensor, list]:
    """All logits, and the tokens: each is the likeliest one."""
    batch = DecodingBatch(model)
    logits = [torch.stack([batch.join(ids, 1) for ids in prompts])]
    for _ in range(steps):
        logits.append(batch.step(logits[-1].argmax(-1).tolist()))
    return torch.stack(logits), [x.argmax(-1).tolist() for x in logits]


@pytest.mark.parametrize("rows", [1, 3])
@each("name")
def test_logits_and_tokens_are_those_of_transformers(name: str, rows: int) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS[name]), Bias())
    named = policies(pruner.space)
    wanted = [named[n] for n in ("dense", "random", "first attention empty", "no mlp")]
    expected = [under(pruner, kept, rows) for kept in wanted]
    decode_fast(pruner.lm.model)
    pruner.make_contiguous()
    for kept, (logits, tokens) in zip(wanted, expected, strict=True):
        found, chosen = under(pruner, kept, rows)
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
        assert chosen == tokens


def under(pruner: LivePruner, kept: list[int], rows: int) -> tuple[Tensor, list]:
    with pruner.at(kept) as model:
        return decoded(model, PROMPTS[:rows], 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_as_close_to_32_as_those_of_transformers(dtype: torch.dtype) -> None:
    exact = random_model(CHECKPOINTS["llama-biases"]).model.to(dtype)
    wide = copy.deepcopy(exact).float()
    errors = []
    for quick in (False, True):
        if quick:
            decode_fast(exact)
        batches = DecodingBatch(exact), DecodingBatch(wide)
        for batch in batches:
            batch.join(PROMPTS[1], 1)
        logits = [torch.stack([batch.step([t])[0] for t in range(9)]) for batch in batches]
        errors.append(float((logits[0].float() - logits[1]).square().mean().sqrt()))
    assert errors[1] < 1.2 * errors[0] < 0.1
    assert mkldnn.enabled


def test_generate_takes_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(CHECKPOINTS["qwen3-groups-of-2-tied"]).model
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    ids = torch.arange(1, 8).view(1, -1)
    expected = model.generate(ids, **options)
    decode_fast(model)
    layer = model.get_decoder().layers[0]
    calls: list[str] = []
    layer.self_attn.register_forward_hook(lambda *_: calls.append("attention"))
    assert model.generate(ids, **options).equal(expected)
    assert calls == ["attention"], "attention is called for the prompt only"
    layer.register_forward_hook(lambda *_: calls.append("layer"))
    assert model.generate(ids, **options).equal(expected)
    assert calls.count("layer") == 8, "a layer with a hook is called for every token"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_act(dtype: torch.dtype) -> None:
    lm = random_model(CHECKPOINTS["llama-biases"])
    lm.model.to(dtype)
    pruner = pruner_of(lm, Bias())
    adapters, kept = Adapters(pruner, 2, 1.0), policies(pruner.space)["random"]
    without, _ = under(pruner, kept, 1)
    for pair in adapters.pairs.values():
        torch.nn.init.normal_(pair.up, std=0.3)
    logits, _ = under(pruner, kept, 1)
    decode_fast(lm.model)
    found, _ = under(pruner, kept, 1)
    change = float((logits - without).abs().max())
    assert float((found - logits).abs().max()) < 0.05 * change
