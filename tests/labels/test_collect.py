import multiprocessing
from pathlib import Path
from unittest.mock import Mock, create_autospec

import torch

from ppf.labels.collect import label
from ppf.labels.labeller import Labeller
from ppf.labels.store import LabelRow, LabelStore
from ppf.labels.table import PROPOSED, Labels
from tests.ranks import FakeRanks

PROCESSES = multiprocessing.get_context("fork")  # without the seconds that imports take


def _hold(folder: Path, held, done) -> None:
    store = LabelStore(folder, "a", [2])
    with store.claim((1,)) as mine:
        assert mine
        held.set()
        done.wait()
        store.add(LabelRow((1,), 0.3, 3.0, "other", 0.1))


def test_policies_claimed_by_others_are_waited_for(tmp_path: Path) -> None:
    held, done = PROCESSES.Event(), PROCESSES.Event()
    other = PROCESSES.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(60)
    store = LabelStore(tmp_path, "a", [2])
    with store.claim((1,)) as mine:
        assert not mine
    with store.claim((2,)) as mine:
        assert mine
    done.set()
    with store.claim((1,), wait=True) as mine:
        assert not mine
    assert store[(1,)].source == "other"
    other.join()


def test_a_killed_process_leaves_no_claim(tmp_path: Path) -> None:
    held, done = PROCESSES.Event(), PROCESSES.Event()
    other = PROCESSES.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(60)
    other.kill()
    other.join()
    with LabelStore(tmp_path, "a", [2]).claim((1,), wait=True) as mine:
        assert mine


def test_labels_have_the_source_of_the_call(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, "a", [2])
    store.add(LabelRow((1,), 0.3, 3.0, "search", 0.1))
    labels = label(store, create_autospec(Labeller), torch.tensor([[1]]), "sampler")
    assert labels.source == ["sampler"] and labels.nll.tolist() == [3.0]


def test_only_new_rows_are_added() -> None:
    labels = Labels(torch.tensor([[1, 2], [3, 4]]), torch.tensor([1.0, 2.0]), ["a", "b"])
    more = labels.with_rows(torch.tensor([[3, 4], [5, 6], [5, 6]]), torch.tensor([7.0, 8.0, 8.0]))
    assert more.kept.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert more.nll.tolist() == [1.0, 2.0, 8.0] and more.source == ["a", "b", PROPOSED]


def test_ranks_start_at_different_places_and_label_neighbours(tmp_path: Path) -> None:
    policies = torch.arange(1, 7)[:, None]
    for rank, expected in ((0, [1, 2, 3, 4, 5, 6]), (1, [4, 5, 6, 1, 2, 3])):
        labeller, scored = create_autospec(Labeller), list[int]()

        def score(kept: tuple[int, ...], scored=scored) -> float:
            scored.append(kept[0])
            return 3.0

        labeller.score.side_effect, labeller.pruner = score, Mock()
        labeller.pruner.space.ratio.return_value = torch.tensor(0.3)
        store = LabelStore(tmp_path / str(rank), "a", [6])
        label(store, labeller, policies, "sampler", FakeRanks(rank, []))
        assert scored == expected
