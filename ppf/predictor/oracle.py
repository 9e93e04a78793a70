"""The real model in place of a predictor, as a baseline of searches."""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(kw_only=True)
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
    exact: ClassVar[bool] = True
    screening: Sequence[Screening]

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        self._measure, self._screen, self._window = inputs.measure, inputs.screen, 0
        self._last = dict[tuple[int, ...], float]()
        self._known = dict[tuple[int, ...], float]()

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        policies = list(map(tuple, kept.tolist()))
        scores = {policy: self._known[policy] for policy in policies if policy in self._known}
        new = torch.tensor([policy not in scores for policy in policies], device=kept.device)
        if new.any() and set(policies) == self._last.keys():  # agents ask again for their metrics
            scores = self._last
        elif new.any():
            found = self._scores(kept[new], self.screening).tolist()
            scores |= zip(map(tuple, kept[new].tolist()), found, strict=True)
            self._last = scores
        mean = torch.tensor([scores[policy] for policy in policies], device=kept.device)
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
