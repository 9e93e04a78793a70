"""Speed of a model: prefill (reading prompts) and decode (generating tokens)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, StoppingCriteria

from ppf.evaluation.memory import peak_bytes
from ppf.llm.loading import check_window
from ppf.progress import track
from ppf.ranges import Count


@dataclass(frozen=True)
class SpeedTest:
    """Measures the speed of prefill and decode at several batch sizes.

    Args:
        batches: numbers of prompts.
        prompt: tokens in each prompt, drawn at random.
        new_tokens: tokens that are generated after each prompt.
        repeats: timed runs, of which the median is reported; a run before them warms up.
    """

    batches: Annotated[Sequence[Count], Field(min_length=1)]
    prompt: Count
    new_tokens: Count
    repeats: Count

    def check(self, config: PreTrainedConfig) -> None:
        """Raises PPFError if a model has too few positions for the prompt and the new tokens."""
        positions = self.prompt + self.new_tokens + 1
        check_window(positions, config, "speed.prompt + speed.new_tokens")

    def run(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """The speed at each batch size, as a row of evaluation.json.

        It has tokens per second, summed over the batch, of `prefill` (the prompts) and `decode`
        (what is generated). `peak_bytes` is the size of the weights plus the largest additional
        memory of a run; None: the system does not report it.

        Raises:
            PPFError: the model has too few positions.
        """
        self.check(model.config)
        return [self._run(model, batch) for batch in self.batches]

    def _run(self, model: PreTrainedModel, batch: int) -> dict[str, Any]:
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (batch, self.prompt), device=model.device)
        with peak_bytes(model) as peak:
            prefill_seconds(model, ids)
            decode_seconds(model, ids, self.new_tokens)
        prefills, steps = [], []
        for _ in track(range(self.repeats), f"Timing {batch} × {self.prompt} tokens"):
            prefills.append(prefill_seconds(model, ids))
            steps.append(decode_seconds(model, ids, self.new_tokens))
        return {
            "batch": batch,
            "prompt": self.prompt,
            "prefill": ids.numel() / median(prefills),
            "decode": batch / median(steps),
            "peak_bytes": peak.bytes,
        }


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
