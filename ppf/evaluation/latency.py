"""Speed of a model: prefill (reading prompts) and decode (generating tokens)."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, StoppingCriteria

from ppf.evaluation.memory import peak_bytes
from ppf.evaluation.results import Speed
from ppf.llm.loading import check_window
from ppf.progress import track


def speeds(model: PreTrainedModel, settings: Mapping[str, Any]) -> list[Speed]:
    """The speed at each batch size of `speed=`.

    Raises:
        PPFError: the model has too few positions for prompt and new tokens.
    """
    check_prompts(settings, model.config)
    rest = dict(settings)
    return [speed(model, batch=batch, **rest) for batch in rest.pop("batches")]


def check_prompts(settings: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Raises PPFError if a model has too few positions for the prompt and new tokens of `speed=`.

    Args:
        config: of the model.
    """
    positions = settings["prompt"] + settings["new_tokens"] + 1
    check_window(positions, config, "speed.prompt + speed.new_tokens")


def speed(
    model: PreTrainedModel, *, batch: int, prompt: int, new_tokens: int, repeats: int
) -> Speed:
    """Median speed over `repeats` runs.

    An additional first run warms up, and measures the peak memory.

    Args:
        batch: number of prompts.
        prompt: tokens in each prompt, drawn at random.
        new_tokens: tokens that are generated after each prompt.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (batch, prompt), device=model.device)
    with peak_bytes(model) as peak:
        prefill_seconds(model, ids)
        decode_seconds(model, ids, new_tokens)
    prefills, steps = [], []
    for _ in track(range(repeats), f"Timing {batch} × {prompt} tokens"):
        prefills.append(prefill_seconds(model, ids))
        steps.append(decode_seconds(model, ids, new_tokens))
    return Speed(batch, prompt, ids.numel() / median(prefills), batch / median(steps), peak.bytes)


@torch.inference_mode()
def prefill_seconds(model: PreTrainedModel, ids: Int[Tensor, "batch prompt"]) -> float:
    """Seconds of one forward pass that fills a KV cache and gives the next token's logits."""
    start = _now(model)
    model(ids, use_cache=True, logits_to_keep=1)
    return _now(model) - start


def decode_seconds(
    model: PreTrainedModel, ids: Int[Tensor, "batch prompt"], new_tokens: int
) -> float:
    """Median seconds from one generated token to the next, with a KV cache."""
    clock = _Clock(model)
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "pad_token_id": 0,
        "do_sample": False,
        "use_cache": True,  # this and what follows may differ in the model's generation_config.json
        "num_beams": 1,
        "num_return_sequences": 1,
        "prompt_lookup_num_tokens": None,
        "stop_strings": None,
        "min_new_tokens": new_tokens + 1,
        "max_new_tokens": new_tokens + 1,
    }
    model.generate(ids, stopping_criteria=[clock], **options)  # type: ignore[operator]
    return median(then - now for now, then in zip(clock.times[:-1], clock.times[1:], strict=True))


class _Clock(StoppingCriteria):
    """Records the time of each generated token; never stops the generation."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.times = model, list[float]()

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        self.times.append(_now(self.model))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
