"""The dense model's likeliest next tokens, computed once for a text and stored on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ppf.llm import output_head

_ROWS = 512  # positions whose logits are in memory at once


class Likeliest(NamedTuple):
    """The likeliest next tokens at some positions.

    Args:
        tokens: their ids.
        log_probabilities: under the distribution over all tokens.
    """

    tokens: Int[Tensor, "*positions few"]
    log_probabilities: Float[Tensor, "*positions few"]

    @classmethod
    def of(cls, log_probabilities: Float[Tensor, "rows tokens"], count: int) -> "Likeliest":
        """The likeliest tokens of distributions; all of them if there are fewer than `count`."""
        found = log_probabilities.topk(min(count, log_probabilities.shape[-1]), dim=-1)
        return cls(found.indices, found.values)

    def part(self, rows: slice) -> "Likeliest":
        """Some rows."""
        return Likeliest(self.tokens[rows], self.log_probabilities[rows])


def top_divergence(
    student: Float[Tensor, "rows tokens"], teacher: Likeliest
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
    """KL divergence in which all tokens except the teacher's likeliest count as one.

    With probabilities p of the teacher and q of the student, and the rests r = 1 − Σ p and
    s = 1 − Σ q, it is Σ p log(p / q) + r log(r / s).

    Args:
        student: log-probabilities.

    Returns:
        The sum over the rows, and its gradient with respect to the student's logits: q − p for
        the most probable tokens, q (1 − r / s) for the others.
    """
    tokens, goal = teacher.tokens.long(), teacher.log_probabilities.float()
    known, likely = student.gather(-1, tokens), goal.exp()
    tiny = torch.finfo(torch.float32).eps
    rest, own = (1 - p.sum(-1, keepdim=True) for p in (likely, known.exp()))
    rest, own = rest.clamp_min(tiny), own.clamp_min(tiny)
    value = (likely * (goal - known)).sum() + (rest * (rest / own).log()).sum()
    gradient = student.exp().mul_(1 - rest / own)
    return value, gradient.scatter_(-1, tokens, known.exp() - likely)


@torch.no_grad()
def write_likeliest(
    file: Path, model: PreTrainedModel, ids: Int[Tensor, "windows window"], count: int, batch: int
) -> None:
    """Computes the likeliest next tokens at all positions but each window's last.

    Args:
        batch: windows that the model reads at a time.
    """
    tokens, values = list[Tensor](), list[Tensor]()
    for rows in _distributions(model, ids, batch):
        part = Likeliest.of(rows, count)
        tokens.append(part.tokens.int().cpu())
        values.append(part.log_probabilities.cpu())
    shape = (len(ids), ids.shape[1] - 1, -1)
    found = {"tokens": tokens, "log_probabilities": values}
    save_file({name: torch.cat(parts).view(shape) for name, parts in found.items()}, file)


def _distributions(
    model: PreTrainedModel, ids: Int[Tensor, "windows window"], batch: int
) -> Iterator[Float[Tensor, "rows tokens"]]:
    head, decoder = output_head(model), model.get_decoder()
    for some in ids.split(batch):
        hidden = decoder(some.to(model.device), use_cache=False).last_hidden_state
        for rows in hidden[:, :-1].flatten(0, 1).split(_ROWS):
            yield head(rows).float().log_softmax(-1)


def read_likeliest(file: Path) -> Likeliest:
    """Reads what `write_likeliest` wrote; the tensors stay on disk until they are used."""
    return Likeliest(**load_file(file))
