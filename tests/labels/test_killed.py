"""Real labelling processes, which are killed at random moments or run side by side."""

import random
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from ppf.labels.collect import draw, label
from ppf.labels.labeller import Labeller
from ppf.labels.samplers import Profiles
from ppf.labels.store import LabelRow, LabelStore
from tests.tiny import TinySetup, tiny_setup

POLICIES, KILLS = 400, 4


def work(folder: Path, cache: str, started, log: Path) -> None:
    """Labels all policies, and logs every row that `add` has stored."""
    torch.set_num_threads(1)
    tiny = tiny_setup(cache)
    store = LabelStore(folder, "a", tiny.space.units.tolist())
    add = store.add

    def noted(row: LabelRow) -> None:
        add(row)
        with log.open("a") as lines:
            lines.write(f"{row.kept}\n")

    store.add = noted  # type: ignore[method-assign]
    labeller = Labeller(tiny.lm, tiny.pruner(), tiny.windows[:2], batch=2)
    sampler = Profiles(ratio=[0.1, 0.5], spread=[0.1, 0.3], smooth=0.5)
    policies = draw(tiny, sampler, POLICIES, seed=0)
    started.set()
    label(store, labeller, policies, "sampler")


@pytest.fixture
def start(tmp_path: Path, cache: str, processes: ForkContext) -> Callable[[], BaseProcess]:
    """Starts a labelling process and waits until it labels."""

    def run() -> BaseProcess:
        started = processes.Event()
        arguments = (tmp_path / "labels", cache, started, tmp_path / "log")
        process = processes.Process(target=work, args=arguments)
        process.start()
        assert started.wait(120)
        return process

    return run


def rows_on_disk(folder: Path) -> Counter[str]:
    """How often each policy is in a shard."""
    shards = [parquet.read_table(path) for path in folder.glob("*.parquet")]
    return Counter(str(tuple(kept)) for shard in shards for kept in shard["kept"].to_pylist())


def finished(folder: Path) -> set[str]:
    log = folder / "log"
    return set(log.read_text().splitlines()) if log.is_file() else set()


@pytest.mark.slow
def test_after_kills_every_stored_row_exists_once(start, tmp_path: Path, tiny: TinySetup) -> None:
    folder, moments, counts = tmp_path / "labels", random.Random(0), []
    for number in range(KILLS):
        process = start()
        while number == 0 and not finished(tmp_path):  # the first kill hits a process at work
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.join()
        rows = rows_on_disk(folder)
        assert finished(tmp_path) <= rows.keys()
        # The row that was being stored may exist too.
        assert len(rows) <= len(finished(tmp_path)) + KILLS
        assert set(rows.values()) <= {1}
        counts.append(len(rows))
    assert 0 < counts[0] < POLICIES / 2 and counts == sorted(counts)

    process = start()
    process.join(120)
    assert process.exitcode == 0
    rows = rows_on_disk(folder)
    assert set(rows.values()) == {1} and len(rows) > 0.9 * POLICIES
    assert len(LabelStore(folder, "a", tiny.space.units.tolist())) == len(rows)
