"""How Lightning's Trainer joins processes that run already."""

from unittest.mock import Mock

import pytest
from lightning import Fabric

from ppf.recovery.fit import _Running


def test_ranks_come_from_fabric_where_a_launcher_sets_no_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under Slurm, which sets neither LOCAL_RANK nor NODE_RANK."""
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    running = _Running(Mock(spec=Fabric, local_rank=3, node_rank=1))
    assert (running.local_rank(), running.node_rank()) == (3, 1)
    assert running.creates_processes_externally
