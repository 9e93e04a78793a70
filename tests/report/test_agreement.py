from typing import Any

import pytest

from ppf.report.agreement import agreement


def rows(*pairs: tuple[float | None, float | None], **more: Any) -> list[dict[str, Any]]:
    same = {"ratio": 0.3, "tune": "full", "tokens": 1000} | more
    return [{"nll_pruned": a, "nll_recovered": b, **same} for a, b in pairs]


def test_order_and_regret_before_and_after_training() -> None:
    found = agreement(rows((4.0, 3.5), (4.1, 3.4), (4.2, 3.6)))
    assert found is not None and found.policies == 3
    assert found.kendall == pytest.approx(1 / 3)
    assert found.regret == pytest.approx(0.1)
    assert "3 policies" in str(found) and "Kendall 0.33" in str(found)


def test_seeds_of_one_policy_are_averaged() -> None:
    after = {4.0: (3.4, 3.5), 4.1: (3.5, 3.6), 4.2: (3.6, 3.7)}
    found = agreement(rows(*((before, x) for before, seeds in after.items() for x in seeds)))
    assert found is not None and (found.policies, found.kendall) == (3, 1.0)
    assert found.regret == 0


def test_seeds_of_one_policy_may_differ_by_rounding() -> None:
    found = rows((4.0, 3.5), (4.0 + 1e-7, 3.5), (4.1, 3.4), (4.1 + 1e-7, 3.6))
    named = [row | {"policy": name} for row, name in zip(found, "aabb", strict=True)]
    assert agreement(named) is None  # two policies are too few


def test_nothing_is_compared_across_ratios_trainings_or_few_policies() -> None:
    pairs = ((4.0, 3.5), (4.1, 3.4), (4.2, 3.6))
    assert agreement(rows(*pairs[:2])) is None
    assert agreement(rows(*pairs) + rows((5.0, 4.0), ratio=0.5)) is None
    assert agreement(rows(*pairs) + rows((5.0, 4.0), tune="lora")) is None
    assert agreement([{"test_ppl": 30.0}]) is None
    untold = [{"ratio": 0.3, "nll_pruned": a, "nll_recovered": b} for a, b in pairs]
    assert agreement([*untold, *rows((5.0, 4.0))]) is None


def test_infinite_losses_are_left_out() -> None:
    known, infinite = rows((4.0, 3.5), (4.1, 3.4), (4.2, 3.6)), rows((None, 5.0), (5.0, None))
    assert agreement([*known, *infinite]) == agreement(known)


def test_rows_without_numbers_are_left_out() -> None:
    pairs = ((4.0, 3.5), (4.1, 3.4), (4.2, 3.6))
    strange = [{"nll_pruned": 2.0, "nll_recovered": 1.0}, *rows(("2.0", 1.0))]
    assert agreement([*rows(*pairs), *strange]) == agreement(rows(*pairs))
