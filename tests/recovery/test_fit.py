"""How Lightning's Trainer joins processes that run already."""

import itertools
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning import Fabric
from ppf.recovery.settings import Machine, Optimization, RecoverySettings, TrainingRun
from torch.utils.data import DataLoader, TensorDataset

from ppf.recovery import fit
from ppf.recovery.fit import _Drafted, _Running
from ppf.recovery.module import TunedModule, warmup_and_cosine
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


class Climbing(TunedModule):
    """Its weight rises by the learning rate in each step; 0.25 would be the best weight."""

    monitor = "validation/distance"

    def __init__(self, optimization: Optimization) -> None:
        super().__init__(optimization)
        self.weight, self.trained = torch.nn.Parameter(torch.zeros(1)), list[float]()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        self.trained.append(self.weight.item())
        return -self.weight.sum()

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log_validation((self.weight - 0.25).abs().sum(), len(batch[0]))


@pytest.mark.parametrize(
    ("ema", "patience", "steps"), [(0.0, None, 10), (0.0, 2, 5), (0.5, None, 10)]
)
def test_the_best_weights_stay_and_patience_and_average_act(
    tmp_path: Path, ema: float, patience: int | None, steps: int
) -> None:
    settings = RecoverySettings(10, 1, 1, 0.0, 0.0, 1, patience, ema, False)
    trainer = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    machine = Machine(Fabric(accelerator="cpu", devices=1), trainer, [])
    run = TrainingRun(settings, machine, tmp_path, window=1, seed=0)
    module, windows = Climbing(run.optimization(0.1)), TensorDataset(torch.zeros(4, 1))
    assert fit.fit(module, windows, windows, run).tokens == steps
    best = module.weight.item()
    assert (best in module.trained) == (ema == 0)  # an average is no weight of the training
    # After three steps, which the cosine shortens: 0.1 · (1 + 0.976 + 0.905).
    assert ema or best == pytest.approx(0.288, abs=1e-3)
