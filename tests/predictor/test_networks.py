import pytest
import torch

from ppf.labels.table import Labels
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.predictor.synthetic import DENSE_NLL, untrained


@pytest.mark.parametrize("encoder", ["masks", "sites"])
@pytest.mark.parametrize("network", ["additive", "cnn"])
def test_any_network_takes_any_encoder(
    space: Space, known: SiteFeatures, labels: Labels, network: str, encoder: str
) -> None:
    module = untrained(known, f"predictor={network}", f"predictor/encoder={encoder}")
    prediction = module.predict(torch.cat([space.dense[None], labels.kept[:4]]))
    assert prediction.mean.shape == prediction.std.shape == (5,)
    assert prediction.mean[0] == pytest.approx(DENSE_NLL)
    assert prediction.mean.isfinite().all()


@pytest.mark.parametrize("encoder", ["masks", "sites"])
def test_additive_never_predicts_a_gain(known: SiteFeatures, labels: Labels, encoder: str) -> None:
    module = untrained(known, f"predictor/encoder={encoder}")
    for parameter in module.ensemble.parameters():
        torch.nn.init.normal_(parameter)
    less = (labels.kept - torch.randint(0, 3, labels.kept.shape)).clamp(min=0)
    more, fewer = module.predict(labels.kept).mean, module.predict(less).mean
    assert (more >= DENSE_NLL).all()
    assert (fewer >= more - 1e-6).all()
    assert (fewer > more + 1e-3).any()
