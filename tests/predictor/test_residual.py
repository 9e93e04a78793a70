"""Interactions that no additive predictor can know, and transfer between texts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.predictor.encoders import Facts
from ppf.predictor.fit import FILE
from ppf.predictor.residual import GaussianProcess
from ppf.space import Space
from tests.predictor.synthetic import DENSE_NLL, fitted_with, made_up_labels

STRONG = 3.0  # interaction
QUICK = "predictor.max_epochs=10"


def process(space: Space) -> GaussianProcess:
    return GaussianProcess(space, effects=[0.0, 1.0], shares=[0.0], rows=200, steps=60, huber=10.0)


def policies_of(space: Space, count: int) -> tuple[Tensor, Tensor]:
    """Random policies, the dense one first, and what their cuts cost alone."""
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(count, len(space), generator=generator) * (space.units + 1)).long()
    kept[0] = space.units
    levels = torch.arange(25) / space.units[:, None]
    effects = (1 - levels.clamp(max=1)) ** 2
    return kept, effects


def halves(count: int) -> Tensor:
    """Weights of two members, each of which must not see one half."""
    return (torch.arange(count) % 2 == torch.arange(2)[:, None]).float()


def test_process_is_nearer_to_what_it_has_seen(space: Space) -> None:
    kept, effects = policies_of(space, 150)
    truth = effects.gather(1, kept.T).T
    left = (truth[:, 1] * truth[:, 3] + 0.3 * truth[:, 5]).repeat(2, 1)
    residual = process(space)
    unseen = (residual.fit(effects, kept, left, halves(150)).mean - left[0]).abs().mean()
    assert (residual(kept).mean - left[0]).abs().mean() < 0.6 * unseen
    assert unseen < 0.5 * (left - left.mean()).abs().mean()


def test_a_row_is_judged_without_its_fold(space: Space) -> None:
    kept, effects = policies_of(space, 80)
    left = effects.gather(1, kept.T).T[:, 1].repeat(4, 1)
    folds = (torch.arange(80) % 4 != torch.arange(4)[:, None]).float()
    unseen = process(space).fit(effects, kept, left, folds)
    left[:, folds[2] == 0] += 1
    again = process(space).fit(effects, kept, left, folds)
    changed = unseen.mean != again.mean
    assert not changed[folds[2] == 0].any() and changed[1:][folds[2, 1:] == 1].all()


def test_the_prior_knows_the_dense_policy_alone(space: Space) -> None:
    kept, effects = policies_of(space, 60)
    kept[1::3] = 0
    residual = process(space)
    residual.fit(effects, kept, torch.randn(2, 60), halves(60))
    points, settings = residual._features(kept).double(), residual.settings.double()
    covariance, variance = residual._prior(points, points, settings)
    torch.testing.assert_close(variance, covariance.diagonal(), rtol=1e-4, atol=1e-6)
    assert covariance[0].abs().max() < 1e-4 * variance[1:].min()
    assert torch.linalg.eigvalsh(covariance).min() > -1e-6 * variance.max()


def test_further_rows_count(space: Space) -> None:
    kept, effects = policies_of(space, 300)
    truth = effects.gather(1, kept.T).T
    left = truth[:, 1] * truth[:, 3]
    residual = process(space)
    residual.fit(effects, kept[:200], left[:200].repeat(2, 1), halves(200))
    before = (residual(kept[200:]).mean - left[200:]).abs().mean()
    residual.condition(kept, left, torch.ones(300))
    assert (residual(kept[200:]).mean - left[200:]).abs().mean() < 0.5 * before


def test_variance_is_least_where_it_has_measured(space: Space) -> None:
    kept, effects = policies_of(space, 200)
    truth = effects.gather(1, kept.T).T
    left = (truth[:, 1] * truth[:, 3]).repeat(2, 1)
    residual = process(space)
    unseen = residual.fit(effects, kept, left, halves(200))
    far = residual(torch.zeros_like(kept[:1])).variance
    assert residual(kept).variance.mean() < unseen.variance.mean() < far


def test_an_emptied_site_may_cost_more_than_its_last_unit_tells(space: Space) -> None:
    kept, effects = policies_of(space, 400)
    kept[1::4, 1] = 0
    left = 0.5 * (kept[:, 1] == 0).float().repeat(2, 1)
    residual = process(space)
    residual.fit(effects, kept, left, halves(400))
    dense = space.dense.repeat(2, 1)
    dense[0, 1], dense[1, 1] = 0, 1
    emptied, narrowed = residual(dense).mean.tolist()
    assert emptied - narrowed > 0.3


def test_wrecked_policies_tell_little_of_others(space: Space) -> None:
    kept, effects = policies_of(space, 300)
    kept[100:] = (space.units + kept[100:]) // 2
    truth = effects.gather(1, kept.T).T
    wrecked = truth.sum(1) > 1.2 * truth[100:].sum(1).max()
    assert 5 < wrecked.sum() < 100
    noise = torch.randn(300, generator=torch.Generator().manual_seed(1)) * wrecked
    left = truth[:, 1] * truth[:, 3] + 0.3 * noise
    residual = process(space)
    residual.fit(effects, kept[:200], left[:200].repeat(2, 1), halves(200))
    told = residual(kept)
    assert (told.mean - left)[200:].abs().mean() < 0.3 * left[200:].abs().mean()
    assert told.variance[wrecked].mean() > 20 * told.variance[200:].mean()


def test_telling_policies_lower_the_variance_of_all(space: Space) -> None:
    kept, effects = policies_of(space, 260)
    rows, pool = kept[:60], kept[60:]
    left = effects.gather(1, rows.T).T[:, [1, 3]].prod(1).repeat(2, 1)
    residual = process(space)
    residual.fit(effects, rows, left, halves(60))

    def variance(some: Tensor) -> float:
        measured = torch.cat([rows, pool[some]])
        residual.condition(measured, torch.zeros(len(measured)), torch.ones(len(measured)))
        return float(residual(pool).variance.mean())

    chosen = residual.select_by_integrated_variance(pool, 20)
    assert len(chosen.unique()) == 20
    assert torch.equal(residual.select_by_integrated_variance(pool, 5), chosen[:5])
    others = [
        torch.randperm(200, generator=torch.Generator().manual_seed(i))[:20] for i in range(5)
    ]
    assert variance(chosen) < 0.95 * min(map(variance, others))


def test_single_units_count(space: Space) -> None:
    kept, effects = policies_of(space, 400)
    site = int(space.units.argmax())
    steps = torch.randn(int(space.units.max()), generator=torch.Generator().manual_seed(1))
    walk = torch.cat([steps.flip(0).cumsum(0).flip(0), torch.zeros(1)])
    left = walk[kept[:, site]].repeat(2, 1)
    unseen = process(space).fit(effects, kept, left, halves(400)).mean
    assert (unseen - left[0]).abs().mean() < 0.1 * (left - left.mean()).abs().mean()


def test_large_batches_are_told_the_same(space: Space) -> None:
    kept, effects = policies_of(space, 900)
    truth = effects.gather(1, kept.T).T
    residual = process(space)
    residual.fit(effects, kept[:300], truth[:300, 1].repeat(2, 1), halves(300))
    whole, variance = residual(kept)
    some = residual(kept[700:705])
    torch.testing.assert_close(whole[700:705], some.mean)
    torch.testing.assert_close(variance[700:705], some.variance, atol=1e-5, rtol=1e-3)


def test_noise_is_not_corrected(space: Space) -> None:
    kept, effects = policies_of(space, 200)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    residual = process(space)
    variance = residual.fit(effects, kept, noise, halves(200)).variance
    assert residual(kept).mean.abs().mean() < 0.3
    assert variance.mean() == pytest.approx(1, rel=0.3)


@pytest.mark.slow
def test_residual_knows_interactions(space: Space, facts: Facts, tmp_path: Path) -> None:
    labels = made_up_labels(space, facts, 300, STRONG)
    error = {}
    for name in ("additive", "residual"):
        fitted = fitted_with(labels, space, facts, tmp_path, f"predictor={name}", QUICK)
        error[name] = fitted.metrics["test/mae"]
        assert fitted.predictor.predict(space.dense[None]).mean == pytest.approx(DENSE_NLL)
    assert error["residual"] < 0.95 * error["additive"]


@pytest.mark.slow
def test_fewer_labels_are_needed_from_another_texts_predictor(
    space: Space, facts: Facts, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fitted_with(made_up_labels(space, facts, 240), space, facts, first, QUICK)
    fresh = made_up_labels(space, facts, 500, other=0.2)

    def error(count: int, *overrides: str) -> float:
        labels = made_up_labels(space, facts, count, other=0.2)
        fitted = fitted_with(labels, space, facts, second, QUICK, *overrides)
        return float((fitted.predictor.predict(fresh.kept).mean - fresh.nll).abs().median())

    assert error(40, f"predictor.init_from={first / FILE}") < error(80)


@pytest.mark.parametrize("other", ["predictor=ridge", "predictor.residual.shares=[0.0]"])
def test_another_network_is_no_start(
    other: str, labels: Labels, space: Space, facts: Facts, tmp_path: Path
) -> None:
    start = f"predictor.init_from={tmp_path / FILE}"
    fitted_with(labels, space, facts, tmp_path, other, "predictor.max_epochs=1")
    with pytest.raises(PPFError, match="init_from has another network or space"):
        fitted_with(labels, space, facts, tmp_path, start)


def test_relaxed_widths_agree_with_whole_ones(
    labels: Labels, space: Space, facts: Facts, tmp_path: Path
) -> None:
    predictor = fitted_with(
        labels, space, facts, tmp_path, "predictor=residual", "predictor.max_epochs=3"
    ).predictor
    kept = labels.kept[100:104].double().requires_grad_()
    relaxed = predictor.relaxed(kept)
    assert torch.allclose(relaxed, predictor.predict(labels.kept[100:104]).mean, atol=1e-4)
    relaxed.sum().backward()
    assert kept.grad is not None and kept.grad.isfinite().all() and kept.grad.any()
