"""What a model scores on text."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ppf.labels.labeller import summed_nll
from ppf.llm import output_head
from ppf.progress import say, track


@torch.inference_mode()
def mean_nll(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], *, batch: int
) -> float:
    """Mean negative log-likelihood of each next token inside its window, nats per token.

    Perplexity is its exponential. A value that is not finite is kept as such.

    Args:
        batch: windows scored at a time; halved when memory does not suffice.
    """
    scored = windows[:, 1:].numel()
    try:
        parts = track(windows.split(batch), f"Scoring {len(windows)} windows of {windows.shape[1]}")
        return float(sum(_summed_nll(model, ids.to(model.device)) for ids in parts)) / scored
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
    say(f"Out of memory: starting again with {batch // 2} windows at a time.")
    torch.cuda.empty_cache()
    return mean_nll(model, windows, batch=batch // 2)


def _summed_nll(model: PreTrainedModel, ids: Int[Tensor, "windows window"]) -> Float[Tensor, ""]:
    hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
    return summed_nll(output_head(model), hidden, ids)
