import pytest

from ppf.pruning.compensation import Bias
from ppf.runtime import DynamicModel, UniformPolicies
from tests.tiny import TinySetup


@pytest.fixture
def model(tiny: TinySetup) -> DynamicModel:
    """The tiny model with bias compensation, pruned uniformly."""
    return DynamicModel(tiny.pruner(Bias()), UniformPolicies(tiny.space), window=32)
