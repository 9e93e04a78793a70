"""The language-model head."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class OutputHead:
    """Last hidden states to logits, as the model's own forward makes them.

    Args:
        linear: the output embeddings.
        cap: c of logits capped at c · tanh(logits / c), as Gemma's are; None: they are not.
    """

    linear: nn.Linear
    cap: float | None

    @property
    def tokens(self) -> int:
        """Of the vocabulary."""
        return len(self.linear.weight)

    def __call__(
        self, hidden: Float[Tensor, "*rows width"], part: slice = slice(None)
    ) -> Float[Tensor, "*rows tokens"]:
        """The logits of a part of the vocabulary."""
        bias = None if self.linear.bias is None else self.linear.bias[part]
        return self._capped(F.linear(hidden, self.linear.weight[part], bias))

    def of(
        self, hidden: Float[Tensor, "rows width"], tokens: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """The logit of one token for each row, in float32."""
        logits = (hidden.float() * self.linear.weight[tokens].float()).sum(1)
        if self.linear.bias is not None:
            logits = logits + self.linear.bias[tokens].float()
        return self._capped(logits)

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


def output_head(model: PreTrainedModel) -> OutputHead:
    """The head of a model, whose config may cap its logits (`final_logit_softcapping`)."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return OutputHead(model.get_output_embeddings(), cap)
