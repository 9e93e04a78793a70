from dataclasses import replace
from itertools import product

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from ppf.pruning import Allocation, SiteFeatures, Traits
from ppf.pruning.allocation import (
    FLAP,
    OWL,
    AlphaPruning,
    BlockInfluence,
    FisherGlobal,
    ImportanceGlobal,
    LeastExpectedLoss,
    ObsGlobal,
)
from ppf.space import Site, Space, project, uniform
from tests.agents.synthetic import layered
from tests.composing import command_config
from tests.tiny import tiny_setup

RATIO = torch.tensor([0.0, 0.1, 0.3, 0.5], dtype=torch.double)
RULES: dict[str, Allocation] = dict(instantiate(command_config("collect").rules))


def features(influence: list[float], groups: int = 3) -> SiteFeatures:
    """Features by which the first layer is the most important one."""
    space, size = layered(len(influence), groups=groups), len(influence)
    kept = torch.arange(25) / space.units[:, None]
    value = torch.tensor(influence)
    site_value = value[torch.tensor([site.layer for site in space.sites])]
    fluctuation = {
        site.name: site_value[i] + torch.linspace(-1, 1, site.units * site.atoms_per_unit)
        for i, site in enumerate(space.sites)
    }
    outliers = torch.zeros(size, 16)
    outliers[:, 5] = value
    errors = site_value[:, None] * (1 - kept).clamp_min(0).square()
    traits = Traits(value, outliers, 5 - value, {}, fluctuation)
    return SiteFeatures(space, errors, kept, site_value, errors, traits)


def removed(space: Space, wanted: Tensor) -> Tensor:
    return ((space.units - wanted) * space.params).sum(1) / space.total


@pytest.fixture(scope="module")
def of_tiny(cache: str) -> SiteFeatures:
    return tiny_setup(cache).features


@pytest.mark.parametrize("name", RULES)
def test_rules_come_near_the_budget_on_a_model(name: str, of_tiny: SiteFeatures) -> None:
    wanted, space = RULES[name].wanted(of_tiny, RATIO), of_tiny.space
    assert wanted.shape == (4, len(space)) and wanted.isfinite().all()
    assert (removed(space, wanted) - RATIO).abs().max() < 0.03
    kept = project(space, wanted, RATIO)
    assert torch.equal(kept[0], space.dense)
    assert name == "uniform" or (kept != uniform(space, RATIO)).any()


@pytest.mark.parametrize(
    "rule", [OWL(5, 0.08), AlphaPruning(), BlockInfluence(), FLAP(), ObsGlobal()]
)
def test_the_more_important_layer_keeps_more(rule: Allocation) -> None:
    known = features([0.9, 0.5, 0.3, 0.1])
    share = rule.wanted(known, RATIO[2:]) / known.space.units
    layers = share.view(2, 4, 2).mean(2)
    assert (layers.diff(dim=1) <= 1e-9).all() and (layers[:, 0] > layers[:, -1]).all()


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name].published])
def test_a_published_rule_keeps_the_only_kv_group(name: str) -> None:
    known, rule = features([0.9, 0.5, 0.3, 0.1], groups=1), RULES[name]
    space, ratio = known.space, torch.tensor([0.3, 0.5, 0.7]).double()
    assert (project(space, rule.wanted(known, ratio), ratio) == 0).any()
    kept = rule.policies(known, ratio)
    assert (kept > 0).all() and (removed(space, kept) >= ratio).all()
    most = torch.tensor([0.95]).double()  # more than the FFNs have
    assert removed(space, rule.policies(known, most)) >= most


@pytest.mark.parametrize("name", RULES)
def test_policies_that_empty_no_site_are_only_rounded(name: str, of_tiny: SiteFeatures) -> None:
    rule = RULES[name]
    for known in (of_tiny, features([0.9, 0.5, 0.3, 0.1])):
        rounded = project(known.space, rule.wanted(known, RATIO), RATIO)
        same = (rounded > 0).all(1) | rule.empties
        assert same[:2].all() and torch.equal(rule.policies(known, RATIO)[same], rounded[same])


def test_alphapruning_maps_exponents_linearly() -> None:
    lost = AlphaPruning().removed(features([0.9, 0.5, 0.3, 0.1]), RATIO[2:3])[0]
    torch.testing.assert_close(lost[-1] / lost[0], torch.tensor(1.3 / 0.7).double())
    torch.testing.assert_close(lost.mean(), RATIO[2])  # layers of equal cost


def test_block_influence_is_a_softmax() -> None:
    lost = BlockInfluence().removed(features([0.9, 0.4]), RATIO[2:3])[0]
    torch.testing.assert_close((lost[1] / lost[0]).log(), torch.tensor(5.0).double())


def test_flap_keeps_the_atoms_above_one_threshold() -> None:
    known = features([0.9, 0.5, 0.3, 0.1])
    space, scores = known.space, known.traits.fluctuation
    atoms = FLAP().wanted(known, RATIO[3:])[0] * torch.tensor(
        [s.atoms_per_unit for s in space.sites]
    )
    kept, gone = [], []
    for site, count in zip(space.sites, atoms.round().int().tolist(), strict=True):
        queue = scores[site.name].sort(descending=True).values
        kept += queue[:count].tolist()
        gone += queue[count:].tolist()
    assert min(kept) >= max(gone)


@pytest.mark.parametrize("rule", [ObsGlobal(), FisherGlobal(), ImportanceGlobal()])
@pytest.mark.parametrize("bumpy", [False, True])
def test_a_greedy_rule_equals_a_greedy_loop(bumpy: bool, rule: Allocation) -> None:
    known = features([0.9, 0.5, 0.3, 0.1])
    space, errors = known.space, known.errors
    if bumpy:  # rises of any size, in any order
        steps = torch.rand(errors.shape, generator=torch.Generator().manual_seed(0))
        errors = (steps * (errors > 0)).flip(1).cumsum(1).flip(1)
    others = torch.zeros_like(errors)  # what the rule must not read
    fields = {ObsGlobal: "errors", FisherGlobal: "losses", ImportanceGlobal: "retained"}
    known = replace(known, errors=others, losses=others, retained=others)
    own = -errors if isinstance(rule, ImportanceGlobal) else errors  # retained importance rises
    known = replace(known, **{fields[type(rule)]: own})
    kept, target = space.dense.tolist(), 0.3 * space.total
    while space.removed(torch.tensor(kept)) < target:
        rises = [
            (float(errors[i, k - 1] - errors[i, k]) / space.sites[i].params if k else torch.inf)
            for i, k in enumerate(kept)
        ]
        kept[min(range(len(kept)), key=rises.__getitem__)] -= 1
    assert rule.wanted(known, RATIO[2:3])[0].tolist() == kept


def test_least_expected_loss_finds_the_least_sum_of_convex_losses() -> None:
    space = Space((Site(0, "mlp", 4, 1, 10), Site(1, "mlp", 4, 1, 10), Site(2, "mlp", 3, 1, 20)))
    weight = torch.tensor([1.0, 3.0, 2.0])[:, None]
    losses = weight * (1 - torch.arange(5) / space.units[:, None]).clamp(min=0).square()
    known = SiteFeatures(space, losses, losses, torch.ones(3), losses)
    ratio = torch.tensor([0.5]).double()
    kept = project(space, LeastExpectedLoss().wanted(known, ratio), ratio)[0].tolist()
    every = [
        (float(losses[range(3), policy].sum()), list(policy))
        for policy in product(range(5), range(5), range(4))
        if 20 * policy[2] + 10 * (policy[0] + policy[1]) <= 70
    ]
    assert float(losses[range(3), kept].sum()) == min(every)[0]


def test_least_expected_loss_looks_beyond_levels_that_change_nothing() -> None:
    space = Space((Site(0, "mlp", 4, 1, 10), Site(1, "mlp", 4, 1, 10)))
    losses = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0], [0.5, 0.4, 0.3, 0.2, 0.1]])
    known = SiteFeatures(space, losses, losses, torch.ones(2), losses)
    wanted = LeastExpectedLoss().wanted(known, torch.tensor([0.5]).double())
    assert wanted.tolist() == [[4.0, 0.0]]
