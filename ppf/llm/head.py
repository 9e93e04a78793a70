"""The language-model head."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.errors import PPFError
from ppf.llm.marked import tokens_of


@dataclass(frozen=True)
class OutputHead:
    """Computes logits from the last hidden states, as the model's own forward does.

    Args:
        linear: the output embeddings.
        cap: c of the soft cap c · tanh(logits / c), as Gemma has it; None: no cap.
    """

    linear: nn.Linear
    cap: float | None

    @property
    def tokens(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.linear.weight)

    def __call__(
        self, hidden: Float[Tensor, "*rows width"], part: slice = slice(None)
    ) -> Float[Tensor, "*rows tokens"]:
        """The logits of the tokens in `part` of the vocabulary."""
        bias = None if self.linear.bias is None else self.linear.bias[part]
        return self.capped(F.linear(hidden, self.linear.weight[part], bias))

    def of(
        self, hidden: Float[Tensor, "rows width"], tokens: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """The logit of one token for each row, in float32."""
        logits = (hidden.float() * self.linear.weight[tokens].float()).sum(1)
        if self.linear.bias is not None:
            logits = logits + self.linear.bias[tokens].float()
        return self.capped(logits)

    def capped(self, logits: Tensor) -> Tensor:
        """The logits after the soft cap, if there is one."""
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


def output_head(model: PreTrainedModel) -> OutputHead:
    """The head of a model, with the cap that its config sets (`final_logit_softcapping`)."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return OutputHead(model.get_output_embeddings(), cap)


@torch.inference_mode()
def check_head(model: PreTrainedModel, ids: Int[Tensor, "windows window"]) -> None:
    """Checks that `output_head` computes the logits that the model's own forward computes.

    Some families, such as Granite and Cohere, scale them.

    Args:
        ids: a few marked tokens to compare on.

    Raises:
        PPFError: the logits differ.
    """
    ids = tokens_of(ids).to(model.device)
    hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
    ours, own = output_head(model)(hidden).float(), model(ids, use_cache=False).logits.float()
    if own.isfinite().all() and not (ours - own).norm() <= 0.05 * own.norm():  # in 16 bits
        raise PPFError(
            f"models of the family '{model.config.model_type}' compute their logits in a way that"
            " PPF does not support: give another model."
        )
