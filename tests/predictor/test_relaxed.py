"""Predictions between whole units."""

import pytest
import torch

from ppf.labels.table import Labels
from ppf.predictor.encoders import Encoder, Masks, Sites
from ppf.predictor.learned import LearnedPredictor
from ppf.predictor.protocol import Differentiable
from ppf.pruning import SiteFeatures
from ppf.space import Space


@pytest.fixture(params=["sites", "masks"])
def encoder(request: pytest.FixtureRequest, space: Space, known: SiteFeatures) -> Encoder:
    if request.param == "masks":
        return Masks(space, known, width=8)
    return Sites(space, known)


def test_whole_units_have_their_own_features(encoder: Encoder, labels: Labels) -> None:
    relaxed = encoder.relaxed(labels.kept.float())
    torch.testing.assert_close(relaxed, encoder(labels.kept))


def test_features_are_linear_between_units(encoder: Encoder, space: Space) -> None:
    below = (space.units // 2)[None]
    half = encoder.relaxed(below + 0.5)
    torch.testing.assert_close(half, (encoder(below) + encoder(below + 1)) / 2)


def test_each_row_belongs_to_its_site(space: Space, known: SiteFeatures) -> None:
    owners = Sites(space, known).owners
    assert owners.tolist() == list(range(len(space)))


def test_the_gradient_tells_what_a_unit_is_worth(fitted: LearnedPredictor, space: Space) -> None:
    predictor = fitted
    assert isinstance(predictor, Differentiable)
    kept = (0.6 * space.units).round()[None].float().requires_grad_()
    value = predictor.relaxed(kept)
    torch.testing.assert_close(
        value.detach(), predictor.predict(kept.long()).mean, rtol=1e-4, atol=1e-4
    )
    value.sum().backward()
    assert (kept.grad <= 0).all() and (kept.grad < 0).any()
