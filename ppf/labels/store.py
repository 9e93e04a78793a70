"""Labels on disk: parquet shards that a killed or a second process cannot spoil."""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from pyarrow import parquet
from torch import Tensor

from ppf.labels.table import Labels
from ppf.progress import warning

_ROWS_PER_SHARD = 256
_FORMAT = "2"
_UNITS = pa.field("element", pa.int16(), nullable=False)
_SCHEMA = pa.schema(
    [
        pa.field("kept", pa.list_(_UNITS), nullable=False),
        pa.field("ratio", pa.float64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("kl", pa.float64()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Row:
    """One labelled policy.

    Args:
        ratio: pruning ratio really reached.
        nll: nats per token.
        kl: from the dense model, nats per token; None where it was not measured.
        source: the sampler that drew it.
        seconds: what the label took.
    """

    kept: tuple[int, ...]
    ratio: float
    nll: float
    kl: float | None
    source: str
    seconds: float


class LabelStore:
    """All labels of one signature, in a folder.

    Every store writes shards of its own; a shard is replaced atomically with each row, so a
    kill loses at most the row in hand. A shard carries a checksum of its rows; one that is damaged,
    or holds policies that do not fit the space, is reported and skipped.

    Args:
        signature: of model, text, space, order and compensation; shards of another one are
            reported and skipped.
        units: of each site of the space.
    """

    def __init__(self, folder: Path, signature: str, units: Sequence[int]) -> None:
        self.folder, self.signature, self.units = folder, signature, units
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        self._start_shard()
        self._rows: dict[tuple[int, ...], Row] = {}
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, kept: Sequence[int]) -> bool:
        return tuple(kept) in self._rows

    def __getitem__(self, kept: Sequence[int]) -> Row:
        return self._rows[tuple(kept)]

    def refresh(self) -> None:
        """Reads what is on disk, other processes' rows among it."""
        for path in sorted(self.folder.glob("*.parquet")):
            stat = path.stat()
            state = stat.st_ino, stat.st_mtime_ns, stat.st_size
            if self._seen.get(path) != state:
                self._seen[path] = state
                self._rows |= {row.kept: row for row in self._read(path)}

    @contextmanager
    def claim(self, kept: Sequence[int], *, wait: bool = False) -> Iterator[bool]:
        """True while this process alone may label the policy.

        False if the policy has a label or another process is at it.

        The claim is a file lock: the system drops it when the process dies.

        Args:
            wait: until the other process is done.
        """
        if kept in self:
            yield False
            return
        name = hashlib.sha256(str(tuple(kept)).encode()).hexdigest()[:16]
        lock = FileLock(self.folder / "claims" / f"{name}.lock")
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        try:
            self.refresh()
            yield kept not in self
        finally:
            if kept in self:  # whoever still holds the old file will find the row
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def add(self, row: Row) -> None:
        """Keeps a row, on disk before this returns."""
        self._rows[row.kept] = row
        if len(self._mine) == _ROWS_PER_SHARD:
            self._start_shard()
        self._mine.append(row)
        draft = self._shard.with_suffix(".draft")
        self._write(self._mine, draft)
        draft.replace(self._shard)

    def export(self, path: Path) -> None:
        """Writes all rows as one shard, for the folder of another store."""
        self._write(list(self._rows.values()), path)

    def labels(self, policies: Int[Tensor, "rows sites"]) -> Labels:
        """The labels of the policies given, in their order.

        Raises:
            KeyError: one has no label yet.
        """
        rows = [self[kept] for kept in policies.tolist()]
        nll = torch.tensor([row.nll for row in rows], dtype=torch.double)
        return Labels(policies, nll, [row.source for row in rows])

    def _start_shard(self) -> None:
        self._mine: list[Row] = []
        self._shard = self.folder / f"{uuid.uuid4().hex}.parquet"

    def _write(self, rows: Sequence[Row], path: Path) -> None:
        table = pa.Table.from_pylist([vars(row) for row in rows], schema=_SCHEMA)
        metadata = {**self._identity, "sha256": _checksum(table)}
        parquet.write_table(table.replace_schema_metadata(metadata), path)

    def _read(self, path: Path) -> list[Row]:
        try:
            # A path would be looked up twice, and replaced between. A file or buffer of Python's
            # that one of Arrow's threads lets go aborts a process which ends just then.
            with pa.OSFile(str(path)) as file:
                table = parquet.ParquetFile(file).read(use_threads=False)
            metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            checksum = _checksum(table)
        except (OSError, ValueError, pa.ArrowException):
            return self._skip(path, "is corrupt")
        if not self._identity.items() <= metadata.items():
            return self._skip(path, "belongs to other labels or another version")
        if metadata.get("sha256") != checksum or not table.schema.equals(_SCHEMA):
            return self._skip(path, "is corrupt")
        rows = [Row(**{**row, "kept": tuple(row["kept"])}) for row in table.to_pylist()]
        if not all(self._fits(row.kept) for row in rows):
            return self._skip(path, "holds policies of another space")
        return rows

    @property
    def _identity(self) -> dict[str, str]:
        return {"format": _FORMAT, "signature": self.signature}

    def _fits(self, kept: tuple[int, ...]) -> bool:
        return len(kept) == len(self.units) and all(
            0 <= k <= units for k, units in zip(kept, self.units, strict=True)
        )

    def _skip(self, path: Path, reason: str) -> list[Row]:
        warning(f"the shard {path} {reason}: skipped, what lacks a label is labelled again.")
        return []


def _checksum(table: pa.Table) -> str:
    return hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()
