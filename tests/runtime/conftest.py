import pytest

from ppf.pruning.compensation import Bias
from ppf.runtime import DynamicModel
from tests.tiny import TinySetup, Uniform


@pytest.fixture
def model(tiny: TinySetup) -> DynamicModel:
    """The tiny model with bias compensation, pruned uniformly."""
    policies = Uniform(tiny.space)
    return DynamicModel(tiny.pruner(Bias()), policies, ratios=[0.0, 0.2, 0.5])
