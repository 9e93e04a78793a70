"""What agents read of each site."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import TinySetup


def test_the_table_names_sites_and_compares_their_sizes_costs_and_errors(tiny: TinySetup) -> None:
    prices = [7 if site.kind == "attention" else 2 for site in tiny.space.sites]
    space, errors = tiny.space.priced("latency", prices), torch.rand(len(tiny.space), 13)
    table = replace(tiny.features, space=space, errors=errors).table(torch.device("cpu"))
    sites = len(space)
    assert torch.equal(table[:, :sites], torch.eye(sites))
    assert torch.equal(table[:2, sites : sites + 2], torch.eye(2))  # attention, then MLP
    depth, units, cost, *three = table[:, sites + 2 :].unbind(1)
    assert depth[[0, 1, -1]].tolist() == [0, 0, 1]
    assert units[1] == 1 and units[0] == space.units[0] / space.units[1]
    assert cost[:2].tolist() == pytest.approx([1, 12 * 2 / (4 * 7)])
    assert torch.equal(torch.stack(three, 1)[1], errors[1, [3, 6, 9]])
