"""The real model in place of a predictor, as a baseline of searches."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import TypedDict

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.protocol import Prediction
from ppf.ranges import Count


class Screening(TypedDict):
    """A step before policies are measured.

    Args:
        windows: number of windows of the labelling part that policies are scored on.
        keep: number of policies of a batch that reach the next step.
    """

    windows: Count
    keep: Count


class Oracle:
    """Measures policies on the real model; known policies are not measured again.

    With screening, a batch is first scored on few windows, and only its best policies are measured.
    Each other policy gets an estimate: its score on the few windows plus the mean difference
    (measured − score) of the measured policies, but at least the highest measured loss. The next
    batch is scored on the next windows.

    Args:
        screening: steps, from few windows to many; empty: every policy is measured.

    Source: the steps are the multi-step selection of EvoPress (arXiv 2410.14649).
    """

    needs_labels: ClassVar[bool] = False

    def __init__(self, *, screening: Sequence[Screening]) -> None:
        self.screening = list(screening)

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        self._measure, self._screen, self._window = inputs.measure, inputs.screen, 0
        self._last: tuple[list[list[int]], Tensor] = [], torch.empty(0)
        self._known = dict[tuple[int, ...], float]()

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        if kept.tolist() != self._last[0]:  # agents ask again for their metrics
            policies = list(map(tuple, kept.tolist()))
            new = torch.tensor([policy not in self._known for policy in policies])
            scores = torch.tensor([self._known.get(policy, torch.nan) for policy in policies])
            if new.any():
                scores[new] = self._scores(kept[new.to(kept.device)], self.screening).to(scores)
            self._last = kept.tolist(), scores
        mean = self._last[1].to(kept.device)
        return Prediction(mean, torch.zeros_like(mean))

    def _scores(
        self, kept: Int[Tensor, "batch sites"], steps: Sequence[Screening]
    ) -> Float[Tensor, " batch"]:
        if not steps:
            measured = self._measure(kept)
            self._known.update(zip(map(tuple, kept.tolist()), measured.tolist(), strict=True))
            return measured
        step, *rest = steps
        if len(kept) <= step["keep"]:
            return self._scores(kept, rest)
        screened = self._screen(kept, step["windows"], self._window)
        self._window += step["windows"]
        best = screened.argsort(stable=True)[: step["keep"]]
        scores = self._scores(kept[best], rest).to(screened)
        offset = scores.mean() - screened[best].mean()
        estimates = (screened + offset).clamp(min=float(scores.max()))
        return estimates.index_copy(0, best, scores)
