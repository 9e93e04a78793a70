import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from ppf.labels.store import LabelRow, LabelStore, _checksum


def row(*kept: int, nll: float = 3.0) -> LabelRow:
    return LabelRow(kept, 0.3, nll, "sampler", 0.1)


def one_site(folder: Path, signature: str = "a") -> LabelStore:
    return LabelStore(folder, signature, units=[2])


def test_labels_are_returned_in_the_order_of_the_policies(tmp_path: Path) -> None:
    store = LabelStore(tmp_path, "a", units=[300, 2])
    for i in range(300):  # more than one shard holds
        store.add(row(i, 1, nll=float(i)))
    again = LabelStore(tmp_path, "a", units=[300, 2])
    assert len(again) == 300 and len(list(tmp_path.glob("*.parquet"))) == 2
    labels = again.labels(torch.tensor([[7, 1], [299, 1]]), "sampler")
    assert labels.nll.tolist() == [7.0, 299.0]
    assert (7, 1) in again and (7, 2) not in again


def test_two_stores_of_one_process_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for kept in (1, 2):
        one_site(tmp_path).add(row(kept))
    assert len(one_site(tmp_path)) == 2


def test_non_finite_labels_are_stored(tmp_path: Path) -> None:
    one_site(tmp_path).add(row(1, nll=float("inf")))
    assert one_site(tmp_path).labels(torch.tensor([[1]]), "sampler").nll.isinf().all()


def test_sites_may_have_more_units_than_16_bits_hold(tmp_path: Path) -> None:
    LabelStore(tmp_path, "a", units=[53_248, 2]).add(row(50_000, 1))
    assert (50_000, 1) in LabelStore(tmp_path, "a", units=[53_248, 2])


def test_a_corrupt_shard_is_reported_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one_site(tmp_path).add(row(1))
    shard = next(tmp_path.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    assert len(one_site(tmp_path)) == 0
    assert "is corrupt: it is skipped" in capsys.readouterr().out


def test_a_foreign_shard_is_reported_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one_site(tmp_path, "other").add(row(1))
    assert (1,) not in one_site(tmp_path)
    assert "belongs to other labels" in capsys.readouterr().out


def test_rows_of_another_process_are_read(tmp_path: Path) -> None:
    store = one_site(tmp_path)
    store.add(row(1))
    code = (
        "import sys; from pathlib import Path; from ppf.labels.store import LabelRow, LabelStore;"
        "LabelStore(Path(sys.argv[1]), 'a', [2]).add(LabelRow((2,), 0.3, 3.0, 'a', 0.1))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ)
    assert (2,) not in store
    store.refresh()
    assert (2,) in store and (1,) in store


def test_shards_with_divergences_of_earlier_versions_are_read(tmp_path: Path) -> None:
    store = one_site(tmp_path)
    store.add(row(1))
    (shard,) = tmp_path.glob("*.parquet")
    table = parquet.read_table(shard)
    table = table.set_column(table.column_names.index("kl"), "kl", pa.array([0.25]))
    metadata = {**table.schema.metadata, b"sha256": _checksum(table).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), shard)
    assert one_site(tmp_path)[(1,)] == row(1)
