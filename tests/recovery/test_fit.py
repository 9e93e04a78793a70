"""How Lightning's Trainer joins processes that run already."""

import itertools
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning import Fabric
from torch.utils.data import DataLoader

from ppf.recovery import fit
from ppf.recovery.fit import _Drafted, _Running
from ppf.recovery.module import TunedModule, warmup_and_cosine
from ppf.recovery.settings import TrainingRun
from tests.recoveries import KilledError


def test_ranks_come_from_fabric_where_a_launcher_sets_no_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under Slurm, which sets neither LOCAL_RANK nor NODE_RANK."""
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    running = _Running(Mock(spec=Fabric, local_rank=3, node_rank=1))
    assert (running.local_rank(), running.node_rank()) == (3, 1)
    assert running.creates_processes_externally


def test_an_interrupted_checkpoint_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, storage = tmp_path / "last.ckpt", _Drafted()
    storage.save_checkpoint({"step": 1}, file)

    def killed(checkpoint: dict[str, int], path: Path) -> None:
        assert path.parent == tmp_path and path != file
        path.write_bytes(b"a part")
        raise KilledError

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KilledError):
        storage.save_checkpoint({"step": 2}, file)
    assert storage.load_checkpoint(file) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("damaged", ["best.ckpt", "last.ckpt", None])
def test_a_training_goes_on_if_both_checkpoints_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str | None
) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        torch.save({"step": 1}, tmp_path / name)
    if damaged:
        (tmp_path / damaged).write_bytes(b"a part")
    trainer, ranks = Mock(), Mock(is_global_zero=True, broadcast=lambda value: value)
    monkeypatch.setattr(fit, "_trainer", lambda module, run: trainer)
    run = Mock(spec=TrainingRun, folder=tmp_path, machine=Mock(ranks=ranks))
    fit._train(Mock(spec=TunedModule), (Mock(spec=DataLoader), Mock(spec=DataLoader)), run)
    start = None if damaged else tmp_path / "last.ckpt"
    assert trainer.fit.call_args.kwargs["ckpt_path"] == start


def test_the_learning_rate_rises_from_the_first_step_and_falls_to_zero() -> None:
    factors = [warmup_and_cosine(3, 13, step) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[3:]))
    assert factors[-1] == pytest.approx(0)
    assert warmup_and_cosine(0, 1, 0) == 1.0
