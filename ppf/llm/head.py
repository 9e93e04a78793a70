"""The language-model head."""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel


def output_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Last hidden states to logits, as the model's own forward makes them.

    Where the config has a `final_logit_softcapping` c (Gemma), logits are c · tanh(logits / c).
    """
    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return head if cap is None else lambda hidden: (head(hidden) / cap).tanh() * cap
