import pytest
import torch

from ppf.labels.table import Labels
from ppf.predictor.encoders import Encoder, Masks, Sites
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.predictor.synthetic import LAYERS


def test_masks_are_the_mask_matrices(space: Space, known: SiteFeatures, labels: Labels) -> None:
    units = zip((labels.kept[:, ::2], labels.kept[:, 1::2]), space.units[:2], strict=True)
    attention, mlp = ((torch.arange(width) < kept[..., None]).float() for kept, width in units)
    cells = Masks(space, known, width=24)(labels.kept)
    assert torch.equal(cells[:, 1], mlp)
    blocks = torch.nn.functional.interpolate(attention, 24)
    assert torch.allclose(cells[:, 0], blocks, atol=1e-6)


def test_sites_hold_error_and_powers_of_the_loss(
    space: Space, known: SiteFeatures, labels: Labels
) -> None:
    features = Sites(space, known)(labels.kept)
    here = (torch.arange(len(space)), labels.kept)
    error, loss = known.errors[here], known.losses[here] / known.losses[:, 0].mean()
    assert features.shape == (len(labels), len(space), 2 + 4 + 3 + 2)
    assert torch.allclose(features[..., 0], 1 - labels.kept / space.units)
    retained = known.retained[torch.arange(len(space)), labels.kept]
    assert torch.allclose(features[..., 1], 1 - retained)
    assert torch.allclose(features[..., 2:6], torch.stack([error, loss**0.5, loss, loss**1.5], -1))
    assert torch.allclose(features[..., 6].mean(1), torch.ones(len(labels)))  # cost


def test_rows_know_their_place(space: Space, known: SiteFeatures, encoder: Encoder) -> None:
    site = 5  # the MLP of layer 2
    kept = space.dense[None].clone()
    kept[0, site] = 0
    changed = (encoder(kept)[0] - encoder.dense).flatten(0, -2).abs().sum(-1).nonzero().flatten()
    assert encoder.layers[changed].tolist() == [2]
    assert encoder.kinds[changed].tolist() == [1]
    assert len(encoder.kinds) == 2 * LAYERS
    assert torch.equal(encoder.energy[changed], known.energy[[site]])


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
