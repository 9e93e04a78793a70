import pytest

from ppf.labels.table import Labels
from ppf.predictor.encoders import Facts
from ppf.predictor.fit import Fitted
from ppf.space import Space
from tests.predictor.synthetic import (
    fitted_with,
    made_up_facts,
    made_up_labels,
    made_up_space,
)


@pytest.fixture(scope="session")
def space() -> Space:
    return made_up_space()


@pytest.fixture(scope="session")
def facts(space: Space) -> Facts:
    return made_up_facts(space)


@pytest.fixture(scope="session")
def labels(space: Space, facts: Facts) -> Labels:
    return made_up_labels(space, facts, count=240)


@pytest.fixture(scope="session")
def fitted(
    labels: Labels, space: Space, facts: Facts, tmp_path_factory: pytest.TempPathFactory
) -> Fitted:
    """The additive predictor."""
    folder = tmp_path_factory.mktemp("predictor")
    return fitted_with(labels, space, facts, folder, "predictor=additive")
