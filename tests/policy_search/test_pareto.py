import torch

from ppf.policy_search.pareto import front


def test_agrees_with_the_definition() -> None:
    points = torch.rand(80, 3, generator=torch.Generator().manual_seed(0))
    beaten = [any(bool((q <= p).all() and (q < p).any()) for q in points) for p in points]
    assert front(points).tolist() == [not b for b in beaten]
