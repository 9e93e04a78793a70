"""Labels on disk, in parquet files that several processes may write at once (shards)."""

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

from ppf.artefacts import draft
from ppf.labels.table import Labels
from ppf.progress import warning

_ROWS_PER_SHARD = 256
_FORMAT = "2"
_LARGEST_SHORT = 2**15 - 1


@dataclass(frozen=True)
class LabelRow:
    """One labelled policy.

    Args:
        kept: number of units that each site keeps.
        ratio: pruning ratio of the policy.
        nll: mean negative log-likelihood, nats per token.
        source: name of the sampler or search that the policy is from.
        seconds: time that the measurement took.
    """

    kept: tuple[int, ...]
    ratio: float
    nll: float
    source: str
    seconds: float


class LabelStore:
    """All labels of one signature, in a folder.

    Each store writes its own shards. A shard is replaced atomically after each row, so a killed
    process loses at most the row that it was measuring. Each shard has a checksum of its rows.
    Shards that are damaged, have another signature, or do not fit the space are skipped with a
    warning.

    Args:
        folder: the folder, which is made if it is missing.
        signature: hash of everything that determines the labels: model, text, space, order and
            compensation.
        units: number of units of each site of the space.
    """

    def __init__(self, folder: Path, signature: str, units: Sequence[int]) -> None:
        self.folder, self.signature, self.units = folder, signature, units
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        self._schema = _schema(units)
        self._start_shard()
        self._rows: dict[tuple[int, ...], LabelRow] = {}
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, kept: Sequence[int]) -> bool:
        return tuple(kept) in self._rows

    def __getitem__(self, kept: Sequence[int]) -> LabelRow:
        return self._rows[tuple(kept)]

    def refresh(self) -> None:
        """Reads new and changed shards, also those of other processes."""
        for path in sorted(self.folder.glob("*.parquet")):
            stat = path.lstat()  # a link may lead nowhere
            state = stat.st_ino, stat.st_mtime_ns, stat.st_size
            if self._seen.get(path) != state:
                self._seen[path] = state
                self._rows |= {row.kept: row for row in self._read(path)}

    @contextmanager
    def claim(self, kept: Sequence[int], *, wait: bool = False) -> Iterator[bool]:
        """Claims a policy, so that no other process labels it.

        The claim is a file lock, which the operating system releases when the process dies.

        Args:
            kept: the policy.
            wait: whether to wait until another process releases the policy.

        Yields:
            Whether the claim succeeded. False: the policy has a label, or another process has
            claimed it.
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
            if kept in self:  # processes that still wait for this file will find the row
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def add(self, row: LabelRow) -> None:
        """Stores a row. It is on disk when this returns."""
        self._rows[row.kept] = row
        if len(self._shard_rows) == _ROWS_PER_SHARD:
            self._start_shard()
        self._shard_rows.append(row)
        with draft(self._shard) as file:
            self._write(self._shard_rows, file)

    def labels(self, policies: Int[Tensor, "rows sites"], source: str) -> Labels:
        """The labels of the given policies, in their order.

        Args:
            source: of all labels, whatever source they are stored with.

        Raises:
            KeyError: a policy has no label.
        """
        rows = [self[kept] for kept in policies.tolist()]
        nll = torch.tensor([row.nll for row in rows], dtype=torch.double)
        return Labels(policies, nll, [source] * len(rows))

    def _start_shard(self) -> None:
        self._shard_rows: list[LabelRow] = []
        self._shard = self.folder / f"{uuid.uuid4().hex}.parquet"

    def _write(self, rows: Sequence[LabelRow], path: Path) -> None:
        table = pa.Table.from_pylist(
            [{**vars(row), "kl": None} for row in rows], schema=self._schema
        )
        metadata = {**self._identity, "sha256": _checksum(table)}
        parquet.write_table(table.replace_schema_metadata(metadata), path)

    def _read(self, path: Path) -> list[LabelRow]:
        try:
            # Arrow would open a path twice, and the file may be replaced in between. A Python file
            # object would abort the process if an Arrow thread released it at exit.
            with pa.OSFile(str(path)) as file:
                table = parquet.ParquetFile(file).read(use_threads=False)
            metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            checksum = _checksum(table)
        except (OSError, ValueError, pa.ArrowException):
            return self._skip(path, "is corrupt")
        if not self._identity.items() <= metadata.items():
            return self._skip(path, "belongs to other labels or another version")
        if metadata.get("sha256") != checksum or not table.schema.equals(self._schema):
            return self._skip(path, "is corrupt")
        columns = table.drop_columns("kl").to_pylist()
        rows = [LabelRow(**{**row, "kept": tuple(row["kept"])}) for row in columns]
        if not all(self._fits(row.kept) for row in rows):
            return self._skip(path, "has policies of another space")
        return rows

    @property
    def _identity(self) -> dict[str, str]:
        return {"format": _FORMAT, "signature": self.signature}

    def _fits(self, kept: tuple[int, ...]) -> bool:
        return len(kept) == len(self.units) and all(
            0 <= k <= units for k, units in zip(kept, self.units, strict=True)
        )

    def _skip(self, path: Path, reason: str) -> list[LabelRow]:
        warning(f"the shard {path} {reason}: it is skipped, and its policies are labelled again.")
        return []


def _schema(units: Sequence[int]) -> pa.Schema:
    number = pa.int16() if max(units) <= _LARGEST_SHORT else pa.int32()
    return pa.schema(
        [
            pa.field("kept", pa.list_(pa.field("element", number, nullable=False)), nullable=False),
            pa.field("ratio", pa.float64(), nullable=False),
            pa.field("nll", pa.float64(), nullable=False),
            pa.field("kl", pa.float64()),  # null: only earlier versions measured a divergence
            pa.field("source", pa.string(), nullable=False),
            pa.field("seconds", pa.float64(), nullable=False),
        ]
    )


def _checksum(table: pa.Table) -> str:
    return hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()
