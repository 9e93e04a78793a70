"""What a search calls its result."""

import pytest
import torch

from ppf.policy_search import Verification
from ppf.stages.search import Found


@pytest.mark.parametrize(("rule", "kept", "nll"), [(False, [4, 4], 3.0), (True, [2, 6], 3.5)])
def test_a_rules_policy_is_the_result_even_where_uniform_pruning_is_better(
    rule: bool, kept: list[int], nll: float
) -> None:
    policies, zeros = torch.tensor([[4, 4], [2, 6]]), torch.zeros(2)
    measured = Verification(
        ("uniform", "candidate"), policies, zeros, zeros, torch.tensor([3.0, 3.5])
    )
    found = Found(None, measured, [], rule)  # type: ignore[arg-type]
    assert (found.kept, found.nll) == (kept, nll)
