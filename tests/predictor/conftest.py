import pytest
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.fit import Fitted
from ppf.space import Space
from tests.predictor.synthetic import (
    fitted_with,
    made_up_errors,
    made_up_labels,
    made_up_space,
)


@pytest.fixture(scope="session")
def space() -> Space:
    return made_up_space()


@pytest.fixture(scope="session")
def errors(space: Space) -> Tensor:
    return made_up_errors(space)


@pytest.fixture(scope="session")
def labels(space: Space, errors: Tensor) -> Labels:
    return made_up_labels(space, errors, count=240)


@pytest.fixture(scope="session")
def fitted(
    labels: Labels, space: Space, errors: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Fitted:
    """The additive predictor."""
    folder = tmp_path_factory.mktemp("predictor")
    return fitted_with(labels, space, errors, folder, "predictor=additive")
