"""Rank 0 decides for all ranks."""

import pytest

from ppf.errors import PPFError
from ppf.ranks import on_rank_0, own_first
from tests.ranks import FakeRanks


def test_only_rank_0_works_and_all_ranks_get_its_answer() -> None:
    sent, worked = list[object](), list[int]()

    def answer(rank: int) -> int:
        return on_rank_0(FakeRanks(rank, sent), lambda: worked.append(rank) or 7)

    assert [answer(0), answer(1)] == [7, 7] and worked == [0]
    assert on_rank_0(None, lambda: 8) == 8


def test_a_sentence_of_rank_0_is_every_ranks() -> None:
    def refuse() -> None:
        raise PPFError("no.")

    sent = list[object]()
    for rank in (0, 1):
        with pytest.raises(PPFError, match="no"):
            on_rank_0(FakeRanks(rank, sent), refuse)


def test_each_rank_begins_with_items_of_its_own() -> None:
    items = [10, 11, 12, 13, 14]
    assert own_first(items, FakeRanks(0, [])) == [10, 12, 14, 11, 13]
    assert own_first(items, FakeRanks(1, [])) == [11, 13, 10, 12, 14]
    assert own_first(items, None) == items
