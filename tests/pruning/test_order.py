import pytest
import torch

from ppf.llm import LanguageModel
from ppf.pruning import Importance, Statistics
from ppf.pruning.importance import OBS, Magnitude, RandomOrder, Taylor, Wanda, step_scores
from ppf.pruning.order import Order, ordered, orders_of, retained_importance
from ppf.pruning.statistics import damped
from tests.checkpoints import CHECKPOINTS, each, random_model, random_windows, width_space
from tests.observing import collect_statistics, score_atoms
from tests.pruning.conftest import error_without

GROUPED = [
    name
    for name, config in CHECKPOINTS.items()
    if config.num_attention_heads
    > getattr(config, "num_key_value_heads", config.num_attention_heads)
]
IMPORTANCES = [OBS(0.01, 4), Wanda(), Magnitude(), RandomOrder(0), Taylor()]


def test_an_order_of_steps() -> None:
    # Two groups of three heads. Steps: 0 removes heads 1 and 3, 1 the group of 4 and 5, 2 head 0.
    scores = torch.tensor([2.5, 0.5, 3.5, 0.2, 1.4, 1.5])
    coupling = random_model(CHECKPOINTS["llama-groups-of-3-tied"]).couplings[0]
    order = Order.of(coupling, scores)
    assert order.chain == ((0, 0), (1, 1), (1, 2), (2, 2), (2, 3))
    assert order.atoms.tolist() == [0, 1] and order.heads.tolist() == [2, 0, 1, 5, 4, 3]
    assert order.heads[order.nested].tolist() == [2, 0, 5, 4, 1, 3]
    assert order.columns(6).tolist() == [4, 5, 0, 1, 10, 11, 8, 9, 2, 3, 6, 7]
    x = torch.randn(3, 12)
    torch.testing.assert_close(order.unnest(order.nest(x), 12), x, atol=0, rtol=0)
    level = order.nest(x)[:, :8]  # two heads of both groups
    torch.testing.assert_close(order.unnest(level, 12), x[:, [0, 1, 2, 3, 6, 7, 8, 9]])


@each("name", GROUPED)
@pytest.mark.parametrize("importance", IMPORTANCES, ids=lambda x: type(x).__name__)
def test_every_step_removes_one_head_of_each_group_or_one_group(
    name: str, importance: Importance
) -> None:
    lm, windows = random_model(CHECKPOINTS[name]), random_windows()
    scores = score_atoms(lm, importance, collect_statistics(lm, windows), windows, query_heads=True)
    orders = orders_of(lm, scores)
    space = width_space(lm, orders=orders)
    for site, coupling, order in zip(space.sites, lm.couplings, orders, strict=True):
        if coupling.kind != "attention":
            assert not order.chain and order.heads is None
            continue
        assert site.heads == order.chain
        assert order.chain[:2] == ((0, 0), (1, 1))
        assert order.chain[-1] == (coupling.atoms, coupling.queries)
        assert site.units == coupling.atoms + coupling.queries - 1
        for groups, queries in order.chain[1:]:  # the first heads of the chain are those kept
            kept = order.nested[: groups * queries].sort().values.view(groups, queries)
            wanted = torch.arange(groups)[:, None] * coupling.queries + torch.arange(queries)
            assert torch.equal(kept, wanted)
        grouped = order.heads.view(coupling.atoms, coupling.queries) // coupling.queries
        assert torch.equal(grouped, order.atoms[:, None].expand_as(grouped))
    retained = retained_importance(lm, space, scores)
    for row, site in zip(retained, space.sites, strict=True):
        levels = row[: site.units + 1]
        assert levels[0] == 0 and levels[-1] == 1 and (levels.diff() >= 0).all()


def test_obs_takes_the_step_of_least_error_per_parameter(
    lm: LanguageModel, statistics: Statistics
) -> None:
    coupling, moments = lm.couplings[2], (statistics.gram[2], statistics.mean[2])
    scores = step_scores(OBS(0.01, 4), coupling, *moments)
    block, ridged = coupling.prunable, damped(statistics.gram[2], 0.01)[0]
    weight, size = coupling.consumer.weight.double(), coupling.columns // 3
    head = (block.params - block.shared) // 3
    assert block.params == 3 * head + block.shared
    steps, removed = scores.floor().int(), list[int]()
    for step in range(5):
        left = (steps >= step).nonzero().flatten()
        groups = [left[left // 3 == g].tolist() for g in (left // 3).unique()]
        now = error_without(weight, ridged, removed, size) if step else 0.0

        def added(heads: list[int], before: list[int] = removed, now: float = now) -> float:
            return error_without(weight, ridged, before + heads, size) - now

        options = []
        if len(groups[0]) > 1:
            each = [min(group, key=lambda h: added([h])) for group in groups]
            options.append((added(each) / (len(each) * head), sorted(each)))
        if len(groups) > 1 or len(groups[0]) == 1:
            for group in groups:
                price = len(group) * head + block.shared
                options.append((added(group) / price, group))
        gone = (steps == step).nonzero().flatten().tolist()
        assert min(options)[1] == gone
        removed = removed + gone


def test_a_model_without_groups_has_its_usual_order() -> None:
    lm, windows = random_model(CHECKPOINTS["llama-wide-heads"]), random_windows()
    found = [
        score_atoms(lm, Wanda(), collect_statistics(lm, windows), windows, query_heads=heads)
        for heads in (False, True)
    ]
    for usual, by_head in zip(*found, strict=True):
        assert torch.equal(usual, by_head)
    assert not any(block.heads for block in ordered(lm, orders_of(lm, found[1])))
