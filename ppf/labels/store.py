"""Labels on disk: parquet shards that a killed or a second process cannot spoil."""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from pyarrow import parquet
from torch import Tensor

from ppf.labels.table import Labels
from ppf.progress import say

_ROWS_PER_SHARD = 256
_SCHEMA = pa.schema(
    [
        ("kept", pa.list_(pa.int16())),
        ("ratio", pa.float64()),
        ("nll", pa.float64()),
        ("kl", pa.float64()),
        ("source", pa.string()),
        ("seconds", pa.float64()),
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
    kill loses at most the row in hand.

    Args:
        signature: of model, text, space, order and compensation; shards of another one are
            reported and skipped.
    """

    def __init__(self, folder: Path, signature: str) -> None:
        self.folder, self.signature = folder, signature
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
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA)
        parquet.write_table(table.replace_schema_metadata({"signature": self.signature}), path)

    def _read(self, path: Path) -> list[Row]:
        try:
            # A path would be looked up twice, and replaced between. A file or buffer of Python's
            # that one of Arrow's threads lets go aborts a process which ends just then.
            with pa.OSFile(str(path)) as file:
                table = parquet.ParquetFile(file).read(use_threads=False)
        except (OSError, pa.ArrowException):
            say(f"Warning: the shard {path} is corrupt: skipped, its rows are labelled again.")
            return []
        if (table.schema.metadata or {}).get(b"signature", b"").decode() != self.signature:
            say(f"Warning: the shard {path} belongs to other labels: skipped.")
            return []
        return [Row(**{**row, "kept": tuple(row["kept"])}) for row in table.to_pylist()]
