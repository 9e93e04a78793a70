"""Chooses the tokens of one sequence."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TopPLogitsWarper

_GREEDY = 1e-5  # at lower temperatures, the divided logits could overflow


TokenScores = list[tuple[int, float]]
"""A chosen token, and then the most probable ones, each with its log-probability in nats."""


class TokenSampler:
    """Samples from the model's distribution, or takes the most probable token.

    Args:
        temperature: divides the logits; 0: the most probable token is taken.
        top_p: samples from the smallest set of tokens that has at least this probability.
        seed: of the random numbers; None: they differ each time.
        device: the device of the logits.
    """

    def __init__(
        self, temperature: float, top_p: float, seed: int | None, device: torch.device
    ) -> None:
        self._temperature, self._warper = temperature, TopPLogitsWarper(top_p)
        self._generator = torch.Generator(device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, logits: Float[Tensor, " vocabulary"]) -> int:
        """The next token."""
        if self._temperature < _GREEDY:
            return int(logits.argmax())
        scores = logits.float()[None] / self._temperature
        if self._warper.top_p < 1:
            scores = self._warper(scores, scores)
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self._generator))


def scored(logits: Float[Tensor, " vocabulary"], token: int, likeliest: int) -> TokenScores:
    """The log-probabilities of a chosen token and of the `likeliest` ones, in descending order."""
    logprobs = logits.float().log_softmax(-1)
    values, tokens = logprobs.topk(min(likeliest, len(logprobs)))
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return [(token, float(logprobs[token])), *pairs]
