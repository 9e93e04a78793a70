"""The choice of policies to measure."""

import torch
from torch import Tensor

from ppf.predictor.acquisition import select_by_integrated_variance
from ppf.space import Space
from tests.predictor.test_residual import halves, new_process, with_interactions


def test_chosen_policies_lower_the_variance_of_all(space: Space) -> None:
    kept, effects, residuals = with_interactions(space, 260)
    rows, pool = kept[:60], kept[60:]
    process = new_process(space)
    process.fit(effects, rows, residuals[:60].repeat(2, 1), halves(60))
    chosen = select_by_integrated_variance(process, pool, 20)
    assert len(chosen.unique()) == 20
    assert torch.equal(select_by_integrated_variance(process, pool, 5), chosen[:5])

    def variance(some: Tensor) -> float:
        measured = torch.cat([rows, pool[some]])
        process.condition(measured, torch.zeros(len(measured)), torch.ones(len(measured)))
        return float(process(pool).variance.mean())

    others = [
        torch.randperm(200, generator=torch.Generator().manual_seed(i))[:20] for i in range(5)
    ]
    assert variance(chosen) < 0.95 * min(map(variance, others))


def test_a_policy_is_chosen_once_even_if_noise_hides_its_value(space: Space) -> None:
    kept, effects, residuals = with_interactions(space, 66)
    process = new_process(space, steps=1)
    process.fit(effects, kept[:60], residuals[:60].repeat(2, 1), halves(60))
    process.noise.log_constant.fill_(8.0)
    assert sorted(select_by_integrated_variance(process, kept[60:], 6).tolist()) == list(range(6))
