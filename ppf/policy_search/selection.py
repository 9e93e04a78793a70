"""The selection part: measures the best policies of a search on windows that it did not use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.evaluation.perplexity import Mean, window_losses
from ppf.labels.labelling import Labelling
from ppf.policy_search.verify import Verification
from ppf.progress import track
from ppf.text.windows import evenly

_FINALISTS = 3, 12  # fewest and most policies that are measured on the selection part
_GAIN = 0.01  # log-perplexity that a further one should promise, nats per token
_Losses = tuple[Float[Tensor, "n used"], Float[Tensor, "n new"]]
MeasureWindows = Callable[[Int[Tensor, "n sites"]], _Losses]
"""Returns the policies' losses in each window of the labelling and of the selection part."""


@dataclass(frozen=True)
class Selection:
    """Losses of the best policies of a search in each window of labelling and selection part.

    The loss of the best of many policies on the labelling part is a minimum, and biased downwards.
    On the selection part only these few policies are compared, so it is nearly unbiased.

    Args:
        rows: rows of the search's `Verification`; the first one is uniform pruning.
        finalists: those that can be the result.
        used: loss of each policy in each window of the labelling part, nats per token.
        new: the same for the selection part.
    """

    rows: Sequence[int]
    finalists: Sequence[int]
    used: Float[Tensor, "rows used"]
    new: Float[Tensor, "rows new"]

    @property
    def best(self) -> int:
        """The finalist of lowest mean loss over all windows of both parts."""
        losses = dict(zip(self.rows, self._joint.tolist(), strict=True))
        return min(self.finalists, key=losses.__getitem__)

    @property
    def _joint(self) -> Float[Tensor, " rows"]:
        return torch.cat([self.used, self.new], 1).mean(1).nan_to_num(torch.inf, torch.inf)

    def can_be_beaten(self, loss: float) -> bool:
        """Whether a policy with this loss on the labelling part could be better by 1 %.

        At best, its loss on the selection part differs from it by the least that was found so far.
        """
        further = (self.new.mean(1) - self.used.mean(1)).nan_to_num(torch.inf).min()
        share = self.new.shape[1] / (self.used.shape[1] + self.new.shape[1])
        best = self._joint[self.rows.index(self.best)]
        return bool(loss + share * further < best - _GAIN)

    def labelling(self, row: int) -> Mean:
        """The mean over the labelling part."""
        return Mean.of(self.used[self.rows.index(row)])

    def selection(self, row: int) -> Mean:
        """The mean over the selection part."""
        return Mean.of(self.new[self.rows.index(row)])

    def against_uniform(self, row: int) -> Mean:
        """The mean difference from uniform pruning over the selection part.

        Its standard error is that of paired windows, and much smaller than that of either mean.
        """
        return Mean.of(self.new[self.rows.index(row)] - self.new[0])


def select(
    measured: Verification, eligible: Bool[Tensor, " n"], by_window: MeasureWindows
) -> Selection:
    """Measures uniform pruning and the eligible policies of lowest measured loss on both parts.

    Similar policies can all fail in a window that no label reads. So further policies are measured
    as long as one of them could have a perplexity that is 1 % lower.

    Args:
        measured: policies of the search, uniform pruning first.
        eligible: which of them can be the result; one at least.
        by_window: measures policies in each window of both parts.
    """
    losses, (fewest, most) = measured.measured.nan_to_num(torch.inf), _FINALISTS
    queue = [row for row in losses.argsort().tolist() if eligible[row]]
    rows = list(dict.fromkeys([0, *queue[:fewest]]))
    found = Selection(rows, [row for row in rows if eligible[row]], *by_window(measured.kept[rows]))
    for row in queue[fewest:most]:
        if row in found.rows:
            continue
        if not found.can_be_beaten(float(losses[row])):
            break
        used, new = by_window(measured.kept[[row]])
        parts = torch.cat([found.used, used]), torch.cat([found.new, new])
        found = Selection([*found.rows, row], [*found.finalists, row], *parts)
    return found


def selection_part(labelling: Labelling, count: int) -> MeasureWindows | None:
    """Measures policies on windows of the labelling part's documents that no label reads.

    Args:
        labelling: of the search.
        count: number of these windows.

    Returns:
        None: there are no such windows.
    """
    new = evenly(labelling.others, count)
    batch = labelling.settings.batch

    def by_window(kept: Int[Tensor, "n sites"]) -> _Losses:
        before = labelling.passes.get("selection", 0)  # of other ratios
        labelling.passes["selection"] = before + len(kept) * new.numel()
        rows, used = [], [labelling.labeller.by_window(policy) for policy in kept.tolist()]
        for policy in track(kept.tolist(), "Measuring the best policies on the selection part"):
            with labelling.model.at(policy) as model:
                rows.append(window_losses(model, new, batch=batch))
        return torch.stack(used), torch.stack(rows)

    return by_window if len(new) else None
