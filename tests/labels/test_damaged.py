"""Damaged and foreign shards are skipped with a warning."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ppf.labels.store import LabelRow, LabelStore

UNITS = [3, 24, 3, 24]
ROWS = [LabelRow((3, 24 - i, i % 4, 20), 0.1 * i, 3.0 + i / 7, "sampler", 0.5) for i in range(6)]
TRIES = 60  # of each kind of damage


def overwrite(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.randrange(256)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def insert(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start:start] = chance.randbytes(chance.randrange(1, 9))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    store = LabelStore(tmp_path, "a", UNITS)
    for row in ROWS:
        store.add(row)
    return next(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("damage", [overwrite, truncate, insert])
def test_a_damaged_shard_never_gives_wrong_values(
    shard: Path, damage: Callable[[bytearray, random.Random], None], capsys: pytest.CaptureFixture
) -> None:
    whole, chance, skipped = shard.read_bytes(), random.Random(0), 0
    for _ in range(TRIES):
        data = bytearray(whole)
        damage(data, chance)
        shard.write_bytes(data)
        store = LabelStore(shard.parent, "a", UNITS)
        if "Warning: the shard" in capsys.readouterr().out:
            assert len(store) == 0
            skipped += 1
        else:
            assert len(store) == len(ROWS) and [store[row.kept] for row in ROWS] == ROWS
    assert skipped > TRIES / 4


@pytest.mark.parametrize(
    "content", [b"", bytes(5000), b"PAR1" + bytes(8) + b"PAR1", "link to nowhere", "folder"]
)
def test_other_files_are_skipped(
    shard: Path, content: bytes | str, capsys: pytest.CaptureFixture
) -> None:
    other = shard.with_name("other.parquet")
    if isinstance(content, bytes):
        other.write_bytes(content)
    elif content == "folder":
        other.mkdir()
    else:
        other.symlink_to(shard.parent / "nowhere")
    assert len(LabelStore(shard.parent, "a", UNITS)) == len(ROWS)
    assert "other.parquet is corrupt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"text": ["a"]}),
        pa.table({"kept": [[3, 24, 3, 24]], "nll": [3.0]}),
        pa.table({"kept": [[3.5, 24.0, 3.0, 24.0]], "nll": ["low"]}),
        pa.table({"kept": pa.array([None], pa.list_(pa.int16()))}),
    ],
)
@pytest.mark.parametrize("told", [{}, {"signature": "a"}, {"signature": "a", "format": "2"}])
def test_a_shard_of_another_schema_is_skipped(
    tmp_path: Path, table: pa.Table, told: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    parquet.write_table(table.replace_schema_metadata(told), tmp_path / "other.parquet")
    assert len(LabelStore(tmp_path, "a", UNITS)) == 0
    assert "Warning: the shard" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [(-1, 24, 3, 24), (4, 24, 3, 24), (3, 24, 3), (3, 24, 3, 24, 0)])
def test_policies_that_do_not_fit_are_skipped(
    tmp_path: Path, kept: tuple[int, ...], capsys: pytest.CaptureFixture
) -> None:
    LabelStore(tmp_path, "a", UNITS).add(replace(ROWS[0], kept=kept))
    assert len(LabelStore(tmp_path, "a", UNITS)) == 0
    assert "has policies of another space" in capsys.readouterr().out
