import json

import pytest
import torch

from ppf.space import Site, Space, project, uniform
from tests.agents.synthetic import layered

GENERATOR = torch.Generator().manual_seed(0)
RATIOS = torch.cat([torch.tensor([0.0]), torch.rand(300, generator=GENERATOR) * 0.9]).double()
WIDTH = layered(12)
SPACES = [WIDTH, layered(12, ["mlp"]), layered(12, ["attention"])]
CHAINS = [((0, 0), (1, 1), (1 + odd, 2 - odd), (2, 2)) for odd in (0, 1)]
PAIRS = [
    (Site(i, "attention", 3, 1, 700, CHAINS[i % 2], 500), Site(i, "mlp", 24, 1, 600))
    for i in range(12)
]
HEADS = Space(tuple(site for pair in PAIRS for site in pair))
ONLY_HEADS = HEADS.part(HEADS.of_kind("attention"))
UNEVEN = Space(tuple(Site(layer, "mlp", 3 + 7 * (layer % 3), 1, 10) for layer in range(12)))


def wanted_widths(space: Space, wild: float) -> torch.Tensor:
    noise = torch.randn(len(RATIOS), len(space), generator=torch.Generator().manual_seed(1))
    return (1 - RATIOS[:, None]) * space.units * (1 + wild * noise)


def excess(space: Space, kept: torch.Tensor) -> torch.Tensor:
    """Parameters removed beyond the budget."""
    return space.removed(kept) - RATIOS * space.total


def by_sorting(space: Space, wanted: torch.Tensor, ratio: float) -> list[int]:
    """Reference where all sites are alike: removes single units until the budget is met."""
    kept, target = space.dense.tolist(), ratio * space.total - 1e-6
    costs, removed = [site.costs(site.price) for site in space.sites], 0
    while removed < target:
        above = [
            (k - 0.5 - w) / s.units
            for k, w, s in zip(kept, wanted.tolist(), space.sites, strict=True)
        ]
        site = max(range(len(kept)), key=lambda i: above[i] if kept[i] else -torch.inf)
        removed += costs[site][kept[site]] - costs[site][kept[site] - 1]
        kept[site] -= 1
    return kept


@pytest.mark.parametrize("space", [*SPACES, HEADS], ids=["width", "mlp", "attention", "heads"])
@pytest.mark.parametrize("wild", [0.0, 0.3, 3.0])
def test_the_excess_is_below_one_cheapest_unit(space: Space, wild: float) -> None:
    kept = project(space, wanted_widths(space, wild), RATIOS)
    assert (kept >= 0).all() and (kept <= space.units).all()
    assert (excess(space, kept) > -1e-5).all()
    most = 0.7 if len(space.kinds) > 1 else 1.0  # beyond it, too few MLP units are left
    assert (excess(space, kept)[RATIOS.lt(most)] < space.params.min()).all()


@pytest.mark.parametrize("wild", [0.5, 30.0])
@pytest.mark.parametrize(
    "space", [*SPACES[1:], UNEVEN, ONLY_HEADS], ids=["mlp", "attention", "uneven", "heads"]
)
def test_removes_the_units_farthest_above_the_wanted_width(space: Space, wild: float) -> None:
    wanted = wanted_widths(space, wild)
    kept = project(space, wanted, RATIOS)
    for row in range(0, len(RATIOS), 25):
        assert kept[row].tolist() == by_sorting(space, wanted[row], RATIOS[row].item())


@pytest.mark.parametrize("space", SPACES[1:], ids=["mlp", "attention"])
def test_uniform_policies_are_nested(space: Space) -> None:
    ratios = RATIOS.sort().values
    assert (uniform(space, ratios).diff(dim=0) <= 0).all()


def test_query_heads_and_their_groups_have_their_own_costs() -> None:
    site = HEADS.sites[0]
    assert site.costs(site.price) == [0, 1200, 1900, 3800]
    assert HEADS.total == 12 * (3800 + 24 * 600)
    kept = project(HEADS, wanted_widths(HEADS, 0.5), RATIOS)
    for row in kept[::30].tolist():
        named = zip(HEADS.sites, row, strict=True)
        left = sum(
            s.heads[k][0] * (s.heads[k][1] * 700 + 500) if s.heads else 600 * k for s, k in named
        )
        assert int(HEADS.removed(torch.tensor(row))) == HEADS.total - left
    half = HEADS.widths(torch.full((1, len(HEADS)), 0.5).double())
    assert half[0, 0] == pytest.approx(2.0) and half[0, 1] == 12
    priced = HEADS.priced("kv", [(0, 8) if site.heads else 0 for site in HEADS.sites])
    assert float(priced.saved(torch.tensor([1, 0] * 12))) == 0.5
    assert Space.restore(json.loads(json.dumps(priced.describe()))) == priced


def test_bounds_hold_if_they_allow_the_ratio() -> None:
    share = (1 - RATIOS[:, None]) * WIDTH.units
    lower = (0.7 * share - 1).floor().clamp_min(0).long()
    upper = torch.minimum((1.3 * share + 1).ceil().long(), WIDTH.units)
    kept = project(WIDTH, wanted_widths(WIDTH, 3.0), RATIOS, (lower, upper))
    assert (kept >= lower).all() and (kept <= upper).all()
    assert (excess(WIDTH, kept) > -1e-5).all()
    assert (excess(WIDTH, kept) < WIDTH.params.min()).all()


def test_a_costly_unit_goes_if_the_cheap_ones_do_not_suffice() -> None:
    space = Space((Site(0, "attention", 2, 1, 5), Site(0, "mlp", 2, 1, 1)))
    kept = project(space, torch.tensor([[1.0, 1.0]]), torch.tensor([0.75]))
    assert kept.tolist() == [[0, 2]]  # 9 of 12 must go; without the second 5, only 7 could


def test_cheap_units_that_the_bounds_remove_count_before_a_costly_one_goes() -> None:
    space = Space((Site(0, "attention", 2, 1, 5), Site(0, "mlp", 8, 1, 1)))
    bounds = (torch.tensor([[0, 0]]), torch.tensor([[2, 6]]))
    kept = project(space, torch.tensor([[0.0, 8.0]]), torch.tensor([5 / 18]), bounds)
    assert kept.tolist() == [[2, 3]]  # exactly 5; with a costly unit 7, since 2 cheap ones must go


def test_other_budgets_are_met_exactly() -> None:
    prices = [5 if site.kind == "attention" else 7 for site in WIDTH.sites]
    space = WIDTH.priced("latency", prices)
    kept = project(space, wanted_widths(space, 0.3), RATIOS)
    over = space.saved(kept) - RATIOS
    assert (over > -1e-9).all()
    assert (over[RATIOS < 0.25] * (space.units * space.cost).sum() < min(prices)).all()


def test_sites_without_cost_keep_all_units() -> None:
    space = WIDTH.priced("kv", [256 if site.kind == "attention" else 0 for site in WIDTH.sites])
    free = space.cost == 0
    bounds = (torch.zeros_like(space.units), space.units)
    for limits in (None, tuple(bound.expand(len(RATIOS), -1) for bound in bounds)):
        kept = project(space, wanted_widths(space, 1.0), RATIOS, limits)
        assert (kept[:, free] == space.units[free]).all()
        over = space.saved(kept) - RATIOS
        assert (over > -1e-9).all() and (over < 1 / space.units[~free].sum()).all()
    assert (uniform(space, RATIOS)[:, free] == space.units[free]).all()
