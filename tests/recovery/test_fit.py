"""Training with Lightning's Trainer: what is kept, what is resumed, and from which files."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock, Timeout
from lightning import Fabric
from torch import Tensor

from ppf.errors import PPFError
from ppf.recovery import fit
from ppf.recovery.fit import Point, _Drafted, _Running
from ppf.recovery.module import TunedModule
from ppf.recovery.training import RecoverySettings, TrainerSettings, TrainingRun, Windows
from tests.recoveries import KilledError, kill

STEPS = 12


class Line(TunedModule):
    """Fits a line to the windows; each step moves the weights by what it reads."""

    def __init__(self, best: float = 0.0) -> None:
        super().__init__({}, lr=0.1, steps=STEPS)
        self.weight, self.best = torch.nn.Parameter(torch.zeros(2)), best
        self.trained = list[float]()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        self.trained.append(float(self.weight[0].detach()))
        return ((self.weight - batch[0]) ** 2).mean()

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log_validation((self.weight - self.best).abs().sum(), len(batch[0]))


def training(folder: Path, *, batch: int = 2, micro_batch: int = 2, every: int = 2) -> TrainingRun:
    """A training of `STEPS` steps on six windows of two numbers."""
    settings = RecoverySettings(2 * batch * STEPS, batch, micro_batch, every)
    trainer = TrainerSettings("32-true", 1.0)
    numbers = torch.arange(12.0).view(6, 2)
    fabric, devices = Fabric(accelerator="cpu", devices=1), {"accelerator": "cpu", "devices": 1}
    windows = Windows(numbers, numbers[:2])  # type: ignore[arg-type]
    return TrainingRun(settings, trainer, fabric, devices, folder, windows, seed=0)


def trained(run: TrainingRun, best: float = 0.0) -> tuple[Tensor, list[Point]]:
    module = Line(best)
    curve = fit.fit(module, run)
    return module.weight.detach(), curve


def test_the_best_weights_stay(tmp_path: Path) -> None:
    module = Line(best=0.25)
    curve = fit.fit(module, training(tmp_path, every=1))
    assert [point.tokens for point in curve] == [4 * step for step in range(1, STEPS + 1)]
    lowest = min(curve, key=lambda point: point.nll)
    weight = module.weight.detach()
    assert float((weight - 0.25).abs().sum()) == pytest.approx(lowest.nll)
    assert lowest != curve[-1] and float(weight[0]) in module.trained
    assert {file.name for file in tmp_path.glob("[!.]*")} == {"finished.ckpt", "curve.json"}


@pytest.mark.parametrize("moments", [(5,), (2, 9), (1, 3, 12, 14)])
def test_killed_trainings_end_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moments: tuple[int, ...]
) -> None:
    whole, expected = trained(training(tmp_path / "whole"))
    taken = kill(monkeypatch, Line, *moments)
    for _ in moments:
        with pytest.raises(KilledError):
            trained(training(tmp_path / "broken"))
    resumed, curve = trained(training(tmp_path / "broken"))
    assert torch.equal(resumed, whole) and len(taken) < 2 * STEPS + len(moments)
    assert [p[:2] for p in curve] == [p[:2] for p in expected]
    assert all(a.seconds < b.seconds for a, b in zip(curve, curve[1:], strict=False))
    monkeypatch.setattr(fit, "_trainer", None)  # a finished training is not repeated
    again, _ = trained(training(tmp_path / "broken"))
    assert torch.equal(again, whole)


@pytest.mark.parametrize("name", ["finished.ckpt", "curve.json"])
def test_a_damaged_result_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    whole, _ = trained(training(tmp_path))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-10])
    again, _ = trained(training(tmp_path))
    assert "it is made again" in capsys.readouterr().out.replace("\n", " ")
    assert torch.equal(again, whole)


@pytest.mark.parametrize("damaged", ["best.ckpt", "last.ckpt"])
def test_a_killed_training_with_a_damaged_checkpoint_starts_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damaged: str
) -> None:
    whole, _ = trained(training(tmp_path / "whole"))
    taken = kill(monkeypatch, Line, 8)
    with pytest.raises(KilledError):
        trained(training(tmp_path))
    file, stale = tmp_path / damaged, tmp_path / ".last.ckpt.0123.draft"
    stale.write_bytes(b"of a killed process")
    file.write_bytes(file.read_bytes()[:-10])
    again, _ = trained(training(tmp_path))
    assert torch.equal(again, whole) and len(taken) == 8 + STEPS and not stale.exists()


def test_a_second_run_waits_for_the_first_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train, waited = fit._train, []

    def second(module: TunedModule, run: TrainingRun) -> None:
        with pytest.raises(Timeout):
            FileLock(run.folder / ".finished.ckpt.lock").acquire(timeout=0)
        waited.append(run.folder)
        train(module, run)

    monkeypatch.setattr(fit, "_train", second)
    trained(training(tmp_path))
    assert waited == [tmp_path]


def test_a_smaller_micro_batch_gives_the_same_weights(tmp_path: Path) -> None:
    found = [
        trained(training(tmp_path / str(size), batch=4, micro_batch=size))[0] for size in (4, 2, 1)
    ]
    for weight in found[1:]:
        torch.testing.assert_close(weight, found[0])


def test_weights_that_are_not_finite_replace_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Line.validation_step

    def spoilt(self: Line, *given: Any) -> None:
        if self.global_step == 8:
            self.weight.data.fill_(torch.nan)
        original(self, *given)

    monkeypatch.setattr(Line, "validation_step", spoilt)
    with pytest.raises(PPFError, match="not finite at step 8"):
        trained(training(tmp_path))
    for name in ("last.ckpt", "best.ckpt"):
        stored = torch.load(tmp_path / name, weights_only=True)
        assert stored["global_step"] < 8 and stored["state_dict"]["weight"].isfinite().all()


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


def test_ranks_come_from_fabric_where_a_launcher_sets_no_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under Slurm, which sets neither LOCAL_RANK nor NODE_RANK."""
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    running = _Running(Mock(spec=Fabric, local_rank=3, node_rank=1))
    assert (running.local_rank(), running.node_rank()) == (3, 1)
    assert running.creates_processes_externally
