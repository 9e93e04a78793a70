"""Prediction intervals that are calibrated on the proposals of a search, and what they promise."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.policy_search.verify import Verification
from ppf.predictor.scores import NOMINAL, interval_factor

_PRIOR = 4  # weight of the predictor's own calibration, as a number of errors
_LARGEST = 5.0  # error in standard deviations; larger ones count as this


def calibrated(rounds: Sequence[Verification]) -> list[Verification]:
    """The rounds with standard deviations that are calibrated on the proposals of earlier rounds.

    Predictors calibrate their intervals on the policies that they are fitted to. A search chooses
    proposals for their low predictions, so these are too low on average, and the intervals are
    often too narrow.

    Source: the quantile is that of split conformal prediction (Vovk et al., 2005).

    Args:
        rounds: in order; their predictions were made before the policies were measured.
    """
    errors = []
    for verified in rounds:
        chosen = verified.proposed.to(verified.std.device) & (verified.std > 0)
        error = (verified.measured - verified.mean)[chosen] / verified.std[chosen]
        errors.append(error.cpu().double())
    return [
        replace(verified, std=widening(torch.cat([errors[0][:0], *errors[:i]])) * verified.std)
        for i, verified in enumerate(rounds)
    ]


def promised_gain(done: Sequence[Verification], predicted: Verification) -> float:
    """The share by which predicted policies can lower the perplexity, if their intervals hold.

    It is that between the lowest measured perplexity and the lowest end of the calibrated 90 %
    intervals of the new proposals; negative: all of them are above.

    Args:
        done: rounds of measured policies, in order.
        predicted: policies of the next round; inf is returned if none is a new proposal with an
            interval.
    """
    last = calibrated([*done, predicted])[-1]
    chosen = last.proposed.to(last.std.device) & (last.std > 0)
    low = (last.mean - NOMINAL * last.std)[chosen]
    if not len(low):
        return math.inf
    best = Verification.merge(done).measured.nan_to_num(torch.inf).min()
    return -float(torch.expm1(low.min() - best))


def widening(errors: Float[Tensor, " proposals"]) -> float:
    """Factor on the standard deviations of the next predictions.

    With it, 90 % intervals contain 90 % of the earlier proposals and of four more errors. These
    stand for the predictor's own calibration: 1/4, 2/4, 3/4 and 4/4 of an interval's half-width.

    Args:
        errors: z, in standard deviations of the predictions.
    """
    own = NOMINAL * torch.arange(1, _PRIOR + 1) / _PRIOR
    size = errors.abs().nan_to_num(torch.inf).clamp(max=_LARGEST)
    return float(interval_factor(torch.cat([size, own.to(size)])))
