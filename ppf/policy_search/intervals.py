"""Prediction intervals that are calibrated on the proposals of a search."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.policy_search.verify import Verification

_PRIOR = 4  # weight of the predictor's own calibration, as a number of proposals
_LARGEST = 5.0  # error in standard deviations; larger ones count as this


def calibrated(rounds: Sequence[Verification]) -> list[Verification]:
    """The rounds with standard deviations that are calibrated on the proposals of earlier rounds.

    Predictors calibrate their intervals on the policies that they are fitted to. A search chooses
    proposals for their low predictions, so these are too low on average, and the intervals are
    often too narrow.

    Args:
        rounds: in order; their predictions were made before the policies were measured.
    """
    errors = [_errors(verified) for verified in rounds]
    return [
        replace(verified, std=widening(torch.cat([errors[0][:0], *errors[:i]])) * verified.std)
        for i, verified in enumerate(rounds)
    ]


def widening(errors: Float[Tensor, " proposals"]) -> float:
    """Factor on the standard deviations of the next predictions.

    Its square is the mean of z² over the n earlier proposals and four values of 1, which stand for
    the predictor's own calibration:

        f² = (4 + Σ z²) / (4 + n)

    Args:
        errors: z, in standard deviations of the predictions.
    """
    squares = errors.square().nan_to_num(torch.inf).clamp(max=_LARGEST**2)
    return float(((_PRIOR + squares.sum()) / (_PRIOR + len(errors))).sqrt())


def _errors(verified: Verification) -> Float[Tensor, " proposals"]:
    """Errors of the proposals that have an interval, in standard deviations."""
    chosen = verified.proposed.to(verified.std.device) & (verified.std > 0)
    error = (verified.measured - verified.mean)[chosen] / verified.std[chosen]
    return error.cpu().double()
