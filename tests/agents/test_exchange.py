import torch

from ppf.agents import Run
from ppf.agents.evolution import exchange
from tests.agents.synthetic import Log, agent, one_process, quadratic


def test_every_site_can_gain_and_lose_units() -> None:
    objective = quadratic()
    parents = objective.uniform().expand(4000, -1)
    moved = exchange(objective, parents, 3, 2, torch.Generator().manual_seed(0)) - parents
    assert (moved > 0).any(0).all() and (moved < 0).any(0).all()
    few = (moved != 0).sum(1) <= 2  # a third of the children exchanges once
    assert 0.1 < few.float().mean() < 0.6
    shares = moved.double().mean(0) / objective.space.units
    assert shares.abs().max() < 0.05  # no site drifts by the rounding


def test_leaders_of_earlier_generations_are_returned_too() -> None:
    searcher = agent("evolution", generations=8, children=32, population=4, polish=None)
    found = searcher.search(quadratic(), Run(one_process(), Log(), 0))
    assert len(found) > 12 and (found.cost.diff() >= 0).all()
