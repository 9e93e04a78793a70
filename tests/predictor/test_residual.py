"""Interactions that no additive predictor can know, and transfer between texts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.predictor.fit import FILE
from ppf.predictor.residual import KernelRidge
from ppf.space import Space
from tests.predictor.synthetic import DENSE_NLL, fitted_with, made_up_labels

STRONG = 3.0  # interaction
QUICK = "predictor.max_epochs=10"


def test_regression_passes_through_what_it_has_seen() -> None:
    torch.manual_seed(0)
    regression = KernelRidge(lengths=[1.0], ridges=[1e-4], huber=10.0)
    effects = torch.linspace(1, 0, 9).repeat(6, 1)
    kept = torch.randint(0, 9, (60, 6))
    truth = effects.gather(1, kept.T).T
    left = (truth[:, 0] * truth[:, 1]).repeat(2, 1)
    weights = torch.ones(2, 60)
    weights[0, :30], weights[1, 30:] = 0, 0
    regression.fit(effects, kept, left, weights)
    error = (regression(kept) - left).abs()
    assert error[weights > 0].max() < 0.01
    assert 0.01 < error[weights == 0].mean() < 0.5 * left.mean()


def test_noise_is_not_corrected() -> None:
    torch.manual_seed(0)
    regression = KernelRidge(lengths=[1.0], ridges=[0.01], huber=10.0)
    kept, weights = torch.randint(0, 9, (60, 6)), torch.eye(2).repeat(30, 1).T
    regression.fit(torch.linspace(1, 0, 9).repeat(6, 1), kept, torch.randn(2, 60), weights)
    assert not regression(kept).any()


@pytest.mark.slow
def test_residual_knows_interactions(space: Space, errors: Tensor, tmp_path: Path) -> None:
    labels = made_up_labels(space, errors, 300, STRONG)
    error = {}
    for name in ("additive", "residual"):
        fitted = fitted_with(labels, space, errors, tmp_path, f"predictor={name}", QUICK)
        error[name] = fitted.metrics["test/mae"]
        assert fitted.predictor.predict(space.dense[None]).mean == pytest.approx(DENSE_NLL)
    assert error["residual"] < 0.95 * error["additive"]


@pytest.mark.slow
def test_fewer_labels_are_needed_from_another_texts_predictor(
    space: Space, errors: Tensor, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fitted_with(made_up_labels(space, errors, 240), space, errors, first, QUICK)
    fresh = made_up_labels(space, errors, 500, other=0.2)

    def error(count: int, *overrides: str) -> float:
        labels = made_up_labels(space, errors, count, other=0.2)
        fitted = fitted_with(labels, space, errors, second, QUICK, *overrides)
        return float((fitted.predictor.predict(fresh.kept).mean - fresh.nll).abs().median())

    assert error(40, f"predictor.init_from={first / FILE}") < error(80)


def test_another_network_is_no_start(
    labels: Labels, space: Space, errors: Tensor, tmp_path: Path
) -> None:
    start = f"predictor.init_from={tmp_path / FILE}"
    fitted_with(labels, space, errors, tmp_path, "predictor=ridge", "predictor.max_epochs=1")
    with pytest.raises(PPFError, match="init_from has another network or space"):
        fitted_with(labels, space, errors, tmp_path, start)


def test_relaxed_widths_agree_with_whole_ones(
    labels: Labels, space: Space, errors: Tensor, tmp_path: Path
) -> None:
    predictor = fitted_with(
        labels, space, errors, tmp_path, "predictor=residual", "predictor.max_epochs=3"
    ).predictor
    kept = labels.kept[100:104].double().requires_grad_()
    relaxed = predictor.relaxed(kept)
    assert torch.allclose(relaxed, predictor.predict(labels.kept[100:104]).mean, atol=1e-4)
    relaxed.sum().backward()
    assert kept.grad is not None and kept.grad.isfinite().all() and kept.grad.any()
