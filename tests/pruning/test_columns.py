import pytest
import torch

from ppf.pruning import LivePruner
from ppf.pruning.columns import LeadingColumns
from ppf.pruning.compensation import Bias, LeastSquares
from tests.checkpoints import CHECKPOINTS, policies, pruner_of, random_model


def test_leading_columns_are_contiguous_in_the_same_memory() -> None:
    matrix = torch.arange(35.0).view(5, 7)
    original, columns = matrix.clone(), LeadingColumns(matrix)
    for width in (3, 7, 0, 6, 1, 7):
        found = columns(width)
        assert found.equal(original[:, :width]) and found.is_contiguous()
        assert found.untyped_storage().data_ptr() == matrix.untyped_storage().data_ptr()
    assert matrix.equal(original)


@pytest.mark.parametrize("compensation", [Bias(), LeastSquares(0.01, 0.01)])
def test_policies_have_the_same_weights(compensation: Bias | LeastSquares) -> None:
    pruners = [pruner_of(random_model(CHECKPOINTS["llama-biases"]), compensation) for _ in "ab"]
    plain, contiguous = pruners
    contiguous.make_contiguous()
    named = policies(plain.space)
    for name in ("random", "a layer empty", "dense", "no attention", "random"):
        for pruner in pruners:
            pruner.apply(named[name])
        for weight, other in zip(weights(plain), weights(contiguous), strict=True):
            assert weight.equal(other) and other.is_contiguous()
    contiguous.restore()
    plain.restore()
    for weight, other in zip(
        plain.lm.model.parameters(), contiguous.lm.model.parameters(), strict=True
    ):
        assert weight.equal(other)


def weights(pruner: LivePruner) -> list[torch.Tensor]:
    return [coupling.consumer.weight for coupling in pruner.lm.couplings]
