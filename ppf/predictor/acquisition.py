"""Active learning: chooses the policies that are labelled next."""

import copy

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.predictor.residual import GaussianProcess
from ppf.progress import track


def select_by_integrated_variance(
    process: GaussianProcess, kept: Int[Tensor, "policies sites"], count: int
) -> Int[Tensor, " chosen"]:
    """Indices of policies to measure, chosen greedily.

    Each choice lowers the mean posterior variance over all policies most. The variance does not
    depend on the measured losses, so all policies are chosen before any is measured.

    Source: Cohn, Ghahramani & Jordan, "Active learning with statistical models" (JAIR 1996).
    """
    process = copy.deepcopy(process).double()
    x = process.features(kept)
    noise = process.noise.variance(x)
    explained = process.covariance(x, process.points) @ process.inverse_cholesky.T
    covariance = process.covariance(x, x) - explained @ explained.T
    variance, chosen = covariance.diagonal(), kept.new_empty(0)
    for _ in track(range(min(count, len(kept))), f"Choosing {count} of {len(kept)} policies"):
        gains = covariance.square().sum(0) / (variance + noise)
        best = gains.index_fill(0, chosen, -1).argmax()
        column = covariance[best] / (variance[best] + noise[best]).sqrt()
        covariance.addr_(column, column, alpha=-1)
        chosen = torch.cat([chosen, best[None]])
    return chosen
