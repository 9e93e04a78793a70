"""One-shot or sequential compensation of a policy, whichever has the lower loss."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import torch

from ppf.evaluation import LogPerplexity
from ppf.labels.labelling import Labelling
from ppf.progress import say
from ppf.pruning.calibration import Calibration
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.sequential import refits
from ppf.text.windows import evenly

_DECIDING = 16
"""Windows of the selection part that choose between two compensations, as in mode/static.yaml."""


@dataclass(frozen=True)
class CompensationChoice:
    """Losses of one policy under two compensations, nats per token; the lower one is kept.

    Args:
        one_shot: with the level bank's compensation.
        sequential: with compensation re-estimated front to back.
        part: of the text, on which both were measured.
        windows: number of windows of the measurement.
    """

    one_shot: float
    sequential: float
    part: Literal["labelling", "selection"]
    windows: int

    @property
    def kept(self) -> str:
        """The name of the better one; "one_shot" if the loss of the other is not finite."""
        better = isfinite(self.sequential) and not self.sequential >= self.one_shot
        return "sequential" if better else "one_shot"

    def record(self) -> dict[str, Any]:
        """The contents of its `records.policy.ChoiceRecord`."""
        losses = {"one_shot": self.one_shot, "sequential": self.sequential}
        measured = {name: LogPerplexity(nll).record() for name, nll in losses.items()}
        return {**measured, "part": self.part, "windows": self.windows}


def keep_better(
    labelling: Labelling, calibration: Calibration, count: int | None
) -> CompensationChoice | None:
    """Re-estimates the present policy's compensation, and undoes it if the loss is not lower.

    The selection part decides. On the labelling part, the search chose the policy for its loss
    with one-shot compensation, so that loss is too low there. If labels read all windows, the
    labelling part decides.

    Args:
        count: number of windows that re-estimation reads; None: all of the calibration part.

    Returns:
        None: there is nothing to re-estimate, or the model's family does not support it.
    """
    model, pruner = labelling.model, labelling.model.pruner
    if pruner.kept == pruner.space.dense.tolist() and not any(pruner.types):
        return None
    if isinstance(model.compensation, NoCompensation):
        return None
    if not refits(model.lm):
        family = model.lm.model.config.model_type
        say(f"No sequential compensation: norms of the family '{family}' follow the sum.")
        return None
    new = evenly(labelling.others, _DECIDING)
    windows = new if len(new) else labelling.windows
    part: Literal["labelling", "selection"] = "selection" if len(new) else "labelling"
    before = labelling.present_nll(windows)
    calibration.refit_sequentially(count, model.compensation)
    choice = CompensationChoice(before, labelling.present_nll(windows), part, len(windows))
    if choice.kept == "one_shot":
        pruner.reset()
    one_shot, sequential = torch.tensor([choice.one_shot, choice.sequential]).exp().tolist()
    say(
        f"Perplexity on {len(windows)} windows of the {part} part: {one_shot:.2f} with one-shot"
        f" compensation, {sequential:.2f} with sequential compensation. Kept:"
        f" {choice.kept.replace('_', '-')}."
    )
    return choice
