import torch

from ppf.policy_search.pareto import front


def test_keeps_points_that_no_point_dominates() -> None:
    points = torch.tensor([[1.0, 5.0], [2.0, 2.0], [3.0, 3.0], [5.0, 1.0], [2.0, 2.0]])
    assert front(points).tolist() == [True, True, False, True, False]


def test_the_front_of_one_dimension_is_its_minimum() -> None:
    assert front(torch.tensor([[3.0], [1.0], [2.0]])).tolist() == [False, True, False]


def test_agrees_with_the_definition() -> None:
    points = torch.rand(80, 3, generator=torch.Generator().manual_seed(0))
    beaten = [any(bool((q <= p).all() and (q < p).any()) for q in points) for p in points]
    assert front(points).tolist() == [not b for b in beaten]
