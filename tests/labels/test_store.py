from pathlib import Path

import torch

from ppf.labels.store import LabelRow, LabelStore


def row(*kept: int, nll: float = 3.0) -> LabelRow:
    return LabelRow(kept, 0.3, nll, "sampler", 0.1)


def one_site(folder: Path) -> LabelStore:
    return LabelStore(folder, "a", units=[2])


def test_labels_are_returned_in_the_order_of_the_policies(tmp_path: Path) -> None:
    units = [70_000, 2]  # more than 16 bits hold
    store = LabelStore(tmp_path, "a", units)
    store.add(row(70_000, 1, nll=float("inf")))
    for i in range(1, 300):  # more than one shard holds
        store.add(row(70_000 - i, 1, nll=float(i)))
    again = LabelStore(tmp_path, "a", units)
    assert len(again) == 300 and len(list(tmp_path.glob("*.parquet"))) == 2
    labels = again.labels(torch.tensor([[69_993, 1], [69_701, 1], [70_000, 1]]), "sampler")
    assert labels.nll.tolist() == [7.0, 299.0, float("inf")]
    assert (69_993, 1) in again and (69_993, 2) not in again


def test_two_stores_do_not_overwrite_each_other_and_read_what_the_other_writes(
    tmp_path: Path,
) -> None:
    store = one_site(tmp_path)
    for written in (store, one_site(tmp_path)):
        written.add(row(1 if written is store else 2))
    assert (2,) not in store and len(one_site(tmp_path)) == 2
    store.refresh()
    assert (2,) in store and (1,) in store
