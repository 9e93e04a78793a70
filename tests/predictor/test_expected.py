"""A predictor that starts without labels and learns from what a search measures."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchmetrics.functional import kendall_rank_corrcoef

from ppf.labels.table import PROPOSED, Labels
from ppf.predictor.expected import ExpectedLoss
from ppf.predictor.protocol import Differentiable
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.composing import command_config
from tests.predictor.synthetic import DENSE_NLL, inputs, made_up_labels


@cache
def composed() -> DictConfig:
    return command_config("search", ["predictor=expected"]).predictor


def fitted(
    known: SiteFeatures,
    labels: Labels,
    differentiate: Callable[..., torch.Tensor] | None = None,
    **changed: Any,
) -> ExpectedLoss:
    predictor = instantiate(composed(), **changed)
    predictor.fit(labels, replace(inputs(known, {}), changes=differentiate))
    return predictor


def first(labels: Labels, count: int) -> Labels:
    return Labels(labels.kept[:count], labels.nll[:count], labels.source[:count])


def test_without_labels_it_is_the_geometric_mean_of_two_sums(
    known: SiteFeatures, labels: Labels, space: Space
) -> None:
    predictor = fitted(known, first(labels, 1), factor=1.0)
    kept = labels.kept[20:24]
    sites = torch.arange(len(space))
    sums = known.losses[sites, kept].sum(1)  # the made-up energies are proportional to the losses
    mean, std = predictor.predict(kept)
    torch.testing.assert_close(mean - DENSE_NLL, sums, rtol=1e-4, atol=1e-6)
    assert (std > 0).all()
    dense = predictor.predict(space.dense[None])
    assert float(dense.mean) == pytest.approx(DENSE_NLL) and float(dense.std) == 0


def test_a_few_measured_policies_improve_it(known: SiteFeatures, space: Space) -> None:
    labels = made_up_labels(space, known, 120)
    order = torch.randperm(119, generator=torch.Generator().manual_seed(0)) + 1
    seen, unseen = torch.cat([torch.zeros(1, dtype=torch.long), order[:30]]), order[30:]
    few = Labels(labels.kept[seen], labels.nll[seen], ["made up"] * len(seen))
    errors = []
    for part in (first(few, 1), few):
        mean, std = fitted(known, part).predict(labels.kept[unseen])
        errors.append(float((mean - labels.nll[unseen]).abs().mean()))
    assert errors[1] < errors[0] / 3
    held = (mean - labels.nll[unseen]).abs() <= 1.645 * std
    assert 0.75 <= held.float().mean() <= 1
    assert kendall_rank_corrcoef(mean, labels.nll[unseen]) > 0.9


def test_predictions_start_from_the_best_proposal(known: SiteFeatures, space: Space) -> None:
    labels = made_up_labels(space, known, 40)
    best, other = 5, 6
    nll = labels.nll.clone()
    nll[best], nll[other] = DENSE_NLL + 0.5, DENSE_NLL + 0.6
    rows = [0, best, other, 7]
    nll[7] = DENSE_NLL + 0.1  # a drawn policy of another ratio is no start
    some = Labels(labels.kept[rows], nll[rows], ["drawn", PROPOSED, PROPOSED, "drawn"])
    changes = torch.zeros_like(known.losses)
    changes[0, :] = 0.2  # of every level of the first site but the present one
    changes[0, labels.kept[best, 0]] = 0
    asked = []

    def differentiate(kept: Sequence[int], windows: int, times: int, cap: float) -> torch.Tensor:
        asked.append((list(kept), windows, times, cap))
        return changes

    given = {"windows": 3, "cap": 1.0, "weight": 0.9}
    fitted(known, some, differentiate, renewal=1, **given)
    predictor = fitted(known, some, differentiate, renewal=2, **given)
    assert asked == [(labels.kept[best].tolist(), 3, times, 1.0) for times in (2, 1)]
    at_best, moved = labels.kept[best], labels.kept[best].clone()
    moved[0] = (moved[0] + 1) % (space.units[0] + 1)
    start, _ = predictor.sums(torch.stack([at_best, moved]))
    assert float(start[0].exp()) == pytest.approx(0.5, rel=1e-6)
    without = fitted(known, some, None).sums(torch.stack([at_best, moved]))[0]
    expected = 0.9 * 0.2 / 0.5 + 0.1 * float(without[1] - without[0])
    assert float(start[1] - start[0]) == pytest.approx(expected, rel=1e-4)


def test_without_proposals_or_windows_nothing_is_differentiated(
    known: SiteFeatures, labels: Labels
) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("differentiated")

    fitted(known, first(labels, 10), refuse)
    proposed = Labels(labels.kept[:3], labels.nll[:3], ["drawn", PROPOSED, PROPOSED])
    fitted(known, proposed, refuse, windows=0)


def test_between_units_it_is_continuous_and_differentiable(
    known: SiteFeatures, labels: Labels
) -> None:
    predictor = fitted(known, first(labels, 16))
    assert isinstance(predictor, Differentiable)
    whole = labels.kept[160:170]
    torch.testing.assert_close(predictor.relaxed(whole.double()), predictor.predict(whole).mean)
    half = whole.double().clamp(min=1).sub(0.5).requires_grad_()
    predictor.relaxed(half).sum().backward()
    assert half.grad is not None and half.grad.isfinite().all()
    fitted(known, first(labels, 1)).relaxed(free := half.detach().requires_grad_()).sum().backward()
    assert free.grad is not None
    assert (free.grad < 0).double().mean() > 0.9  # keeping more lowers the loss


@pytest.mark.parametrize("odd", [DENSE_NLL - 0.01, torch.inf])
def test_a_policy_without_an_excess_or_a_finite_one_spoils_nothing(
    known: SiteFeatures, labels: Labels, odd: float
) -> None:
    nll = labels.nll[:20].clone()
    nll[10] = odd
    with_it = Labels(labels.kept[:20], nll, ["made up"] * 20)
    others = torch.arange(len(labels.kept)) != 10
    usual = fitted(known, first(labels, 20)).predict(labels.kept[others])
    found = fitted(known, with_it).predict(labels.kept[others])
    torch.testing.assert_close(found.mean, usual.mean, rtol=0.2, atol=0)
