import pytest

from ppf.labels.table import Labels
from ppf.predictor.learned import LearnedPredictor
from ppf.pruning import SiteFeatures
from ppf.space import Space
from tests.predictor.synthetic import fitted_with, made_up_features, made_up_labels, made_up_space


@pytest.fixture(scope="session")
def space() -> Space:
    return made_up_space()


@pytest.fixture(scope="session")
def known(space: Space) -> SiteFeatures:
    return made_up_features(space)


@pytest.fixture(scope="session")
def labels(space: Space, known: SiteFeatures) -> Labels:
    return made_up_labels(space, known, count=240)


@pytest.fixture(scope="session")
def fitted(
    labels: Labels, space: Space, known: SiteFeatures, tmp_path_factory: pytest.TempPathFactory
) -> LearnedPredictor:
    """The additive predictor."""
    folder = tmp_path_factory.mktemp("predictor")
    chosen = "predictor=additive", "trainer.max_epochs=10"
    return fitted_with(labels, known, folder, *chosen)
