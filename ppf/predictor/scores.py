"""How well predictions match measurements: overall, and within bands of the pruning ratio."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import kendall_rank_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from ppf.predictor.protocol import Prediction

_FEWEST = 3  # rows that a score needs
USUAL = math.log(10)  # nats above the dense model; policies below it count in nmse
NOMINAL = 1.6449  # standard deviations of a 90 % interval


class Scores(Metric):
    """Scores of a predictor on policies that it has not seen.

    `compute` gives each score for all rows as `name`, and for each ratio band with enough rows as
    `name_15_30`:

    - mae, median: mean and median absolute error, nats per token;
    - nmse: squared error divided by the variance of the log-perplexity, over policies below ten
      times the dense perplexity;
    - spearman, kendall: rank correlations;
    - coverage: share of measurements inside the nominal 90 % interval;
    - regret: measured log-perplexity of the policy with the best prediction, minus the lowest
      measured one, nats per token.

    Args:
        bands: ascending edges of the ratio bands.
        dense_nll: log-perplexity of the dense model, nats per token.
    """

    full_state_update = False
    mean: list[Tensor]
    std: list[Tensor]
    measured: list[Tensor]
    ratio: list[Tensor]

    def __init__(self, bands: Sequence[float], dense_nll: float) -> None:
        super().__init__(sync_on_compute=False)  # rank 0 trains alone: the others hold no rows
        self.bands, self.dense_nll = list(bands), dense_nll
        for name in ("mean", "std", "measured", "ratio"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        prediction: Prediction,
        measured: Float[Tensor, " rows"],
        ratio: Float[Tensor, " rows"],
    ) -> None:
        self.mean.append(prediction.mean)
        self.std.append(prediction.std)
        self.measured.append(measured)
        self.ratio.append(ratio)

    def compute(self) -> dict[str, Tensor]:
        mean, std, measured, ratio = map(
            dim_zero_cat, (self.mean, self.std, self.measured, self.ratio)
        )
        scores = self._scores(mean, std, measured)
        for low, high in zip(self.bands, self.bands[1:], strict=False):
            inside = (ratio >= low) & (ratio < high)
            band = self._scores(mean[inside], std[inside], measured[inside])
            scores |= {f"{k}_{low * 100:.0f}_{high * 100:.0f}": v for k, v in band.items()}
        return scores

    def _scores(self, mean: Tensor, std: Tensor, measured: Tensor) -> dict[str, Tensor]:
        if len(mean) < _FEWEST:
            return {}
        error = (mean - measured).abs()
        usual = measured < self.dense_nll + USUAL
        spread = measured[usual].var(correction=0) if usual.any() else measured.new_zeros(())
        ranks: dict[str, Any] = {
            "spearman": spearman_corrcoef(mean, measured),
            "kendall": kendall_rank_corrcoef(mean, measured),
            "nmse": error[usual].square().mean() / spread,
        }
        return {
            "mae": error.mean(),
            "median": error.median(),
            "coverage": (error <= NOMINAL * std).float().mean(),
            "regret": measured[mean.argmin()] - measured.min(),
            **{name: score for name, score in ranks.items() if score.isfinite()},
        }
