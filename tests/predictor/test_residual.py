"""Interactions that no additive predictor can know."""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.models import ExactGP
from torch import Tensor

from ppf.predictor.residual import GaussianProcess, Posterior
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.predictor.synthetic import DENSE_NLL, fitted_with, made_up_labels

STRONG = 3.0  # interaction
QUICK = ("trainer.max_epochs=10", "predictor.members=4")
SOME_STEPS = "predictor.residual_steps=30"


def new_process(space: Space, steps: int = 15) -> GaussianProcess:
    return GaussianProcess(space, steps=steps, huber=10.0)


def policies_of(space: Space, count: int) -> tuple[Tensor, Tensor]:
    """Random policies, the dense one first, and the effects of their cuts."""
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(count, len(space), generator=generator) * (space.units + 1)).long()
    kept[0] = space.units
    levels = torch.arange(25) / space.units[:, None]
    effects = (1 - levels.clamp(max=1)) ** 2
    return kept, effects


def halves(count: int) -> Tensor:
    """Weights of two members, each of which leaves one half out."""
    return (torch.arange(count) % 2 == torch.arange(2)[:, None]).float()


class Fitted(NamedTuple):
    """A process that is fitted to the first 150 rows, with its out-of-fold predictions of them."""

    process: GaussianProcess
    out_of_fold: Posterior
    kept: Tensor
    residuals: Tensor


@pytest.fixture(scope="module")
def once(space: Space) -> Fitted:
    kept, effects = policies_of(space, 250)
    cut = effects.gather(1, kept.T)
    residuals = cut[1] * cut[3] + 0.3 * cut[5]
    process = new_process(space)
    found = process.fit(effects, kept[:150], residuals[:150].repeat(2, 1), halves(150))
    return Fitted(process, found, kept, residuals)


def test_process_is_nearer_to_what_it_has_seen(once: Fitted) -> None:
    process, (mean, variance), kept, residuals = once
    kept, residuals = kept[:150], residuals[:150]
    error = (mean - residuals).abs().mean()
    assert (process(kept).mean - residuals).abs().mean() < 0.6 * error
    assert not len(process(kept[:0]).mean)
    assert error < 0.5 * (residuals - residuals.mean()).abs().mean()
    far = process(torch.zeros_like(kept[:1])).variance
    assert process(kept).variance.mean() < variance.mean() < far


def test_a_row_is_predicted_without_its_fold(space: Space) -> None:
    kept, effects = policies_of(space, 80)
    residuals = effects.gather(1, kept.T)[1].repeat(4, 1)
    weights = (torch.arange(80) % 4 != torch.arange(4)[:, None]).float()
    before = new_process(space).fit(effects, kept, residuals, weights)
    residuals[:, weights[2] == 0] += 1
    after = new_process(space).fit(effects, kept, residuals, weights)
    changed = before.mean != after.mean
    assert not changed[weights[2] == 0].any() and changed[1:][weights[2, 1:] == 1].all()


def test_the_dense_policy_is_known_and_no_other(space: Space) -> None:
    kept, effects = policies_of(space, 60)
    kept[1::3] = 0
    process = new_process(space)
    process.fit(effects, kept, torch.randn(2, 60), halves(60))
    x = process.double().features(kept)
    covariance, variance = process.kernel.with_variance(x, x)
    torch.testing.assert_close(variance, covariance.diagonal(), rtol=1e-4, atol=1e-6)
    assert covariance[0].abs().max() < 1e-4 * variance[1:].min()
    assert torch.linalg.eigvalsh(covariance).min() > -1e-6 * variance.max()


def test_predicts_as_gpytorch_does(once: Fitted) -> None:
    process, kept, residuals = deepcopy(once.process), once.kept[:120], once.residuals[:120]
    process.huber, weights = 0.1, torch.linspace(0.5, 2, 80)
    process.condition(kept[:80], residuals[:80], weights)
    mean, variance = process(kept[80:])

    class Reference(ExactGP):
        def forward(self, x: Tensor) -> MultivariateNormal:
            return MultivariateNormal(torch.zeros(len(x)).to(x), process.kernel(x))

    x = process.double().features(kept)
    noise = process.noise.variance(x)
    weights = weights * (0.1 / residuals[:80]).clamp(max=1)  # Huber's
    likelihood = FixedNoiseGaussianLikelihood(noise[:80] / weights)
    reference = Reference(x[:80], residuals[:80].double(), likelihood).eval()
    with torch.no_grad():
        posterior = reference(x[80:])
    torch.testing.assert_close(mean.double(), posterior.mean, rtol=1e-3, atol=1e-4)
    expected = posterior.variance + noise[80:]
    torch.testing.assert_close(variance.double(), expected, rtol=1e-2, atol=1e-5)


def test_an_emptied_site_may_cost_more_than_its_last_unit_tells(space: Space) -> None:
    kept, effects = policies_of(space, 160)
    kept[1::4, 1] = 0
    residuals = 0.5 * (kept[:, 1] == 0).float().repeat(2, 1)
    process = new_process(space)
    process.fit(effects, kept, residuals, halves(160))
    dense = space.dense.repeat(2, 1)
    dense[0, 1], dense[1, 1] = 0, 1
    emptied, narrowed = process(dense).mean.tolist()
    assert emptied - narrowed > 0.3


@pytest.mark.slow
def test_residual_knows_interactions(space: Space, known: SiteFeatures, tmp_path: Path) -> None:
    labels = made_up_labels(space, known, 200, STRONG)
    error = {}
    for name, steps in {"additive": (), "residual": (SOME_STEPS,)}.items():
        fitted = fitted_with(labels, known, tmp_path, f"predictor={name}", *QUICK, *steps)
        error[name] = fitted.metrics["test/mae"]
        assert fitted.predict(space.dense[None]).mean == pytest.approx(DENSE_NLL)
    assert error["residual"] < 0.95 * error["additive"]
