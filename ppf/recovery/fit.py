"""Runs Lightning's Trainer: checkpoints, the loss curve, resumption."""

import gc
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Fabric, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ppf.artefacts import draft, locked, read_if_whole, remove_drafts, write_json
from ppf.progress import quiet_trainer, say, track
from ppf.recovery.computing import reusing_memory
from ppf.recovery.data import WindowSampler
from ppf.recovery.module import NLL, TunedModule
from ppf.recovery.training import Point, TrainingRun

_BEST, _CURVE, _LAST = "best.ckpt", "curve.json", "last.ckpt"


def fit(module: TunedModule, run: TrainingRun) -> list[Point]:
    """Trains a module, from its last checkpoint if there is one; returns its loss curve.

    It ends with the weights that were best in validation. Of several runs with the same folder, one
    trains and the others wait for its result. Damaged files count as missing.

    Raises:
        PPFError: the loss is not finite, or the batch cannot be shared among the processes.
        torch.OutOfMemoryError: the micro-batch is too large.
    """
    finished, ranks = run.folder / "finished.ckpt", run.fabric
    device = next(module.parameters()).device
    with locked(finished) if ranks.is_global_zero else nullcontext():
        if ranks.is_global_zero:
            for name in (_LAST, _BEST, _CURVE):
                remove_drafts(run.folder / name)
        found = read_if_whole(finished, _result) if ranks.is_global_zero else None
        if ranks.broadcast(found is None):
            _train(module, run)
            gc.collect()  # the Trainer and the optimizer refer to each other
            if ranks.is_global_zero:
                (run.folder / _BEST).rename(finished)
                (run.folder / _LAST).unlink()
        ranks.broadcast(None)  # the weights are stored
    weights, curve = found or _result(finished)
    module.load_state_dict(weights, strict=False)  # what is not trained is missing
    module.to(device)  # the Trainer leaves it on the CPU
    return curve


def _result(finished: Path) -> tuple[dict[str, Tensor], list[Point]]:
    """The weights and the loss curve of a finished training."""
    return _checkpoint(finished)["state_dict"], _points(finished.with_name(_CURVE))


def _checkpoint(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _points(file: Path) -> list[Point]:
    return [Point(*row) for row in json.loads(file.read_text(encoding="utf-8"))["points"]]


def _train(module: TunedModule, run: TrainingRun) -> None:
    last, ranks = run.folder / _LAST, run.fabric
    both = last, run.folder / _BEST
    whole = ranks.is_global_zero and all(read_if_whole(x, _checkpoint) is not None for x in both)
    resumed = last if ranks.broadcast(whole) else None
    size, (training, validation) = run.settings.micro_batch, map(TensorDataset, run.windows)
    sampler = WindowSampler(
        len(training),
        run.epoch * run.settings.batch,
        seed=run.seed,
        rank=ranks.global_rank,
        ranks=ranks.world_size,
    )
    loaders = DataLoader(training, size, sampler=sampler), DataLoader(validation, size)
    with quiet_trainer(), reusing_memory():
        _trainer(run).fit(module, *loaders, ckpt_path=resumed, weights_only=True)


def _trainer(run: TrainingRun) -> Trainer:
    several = run.fabric.world_size > 1
    own: dict[str, Any] = {"dirpath": run.folder, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=NLL, save_weights_only=True, **own)
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **own)
    return Trainer(
        **run.devices,
        # Norms of blocks that pruning has emptied have no gradients. One process needs no DDP.
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        plugins=[_Running(run.fabric) if several else LightningEnvironment(), _Drafted()],
        **vars(run.trainer),
        log_every_n_steps=1,
        max_epochs=run.epochs,
        accumulate_grad_batches=run.settings.accumulated(run.fabric.world_size),
        logger=[logger for logger in run.fabric.loggers if isinstance(logger, Logger)],
        # Checkpoints come last, because they store the states of the other callbacks.
        callbacks=[_Progress(run), best, last],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=run.folder,
    )


class _Drafted(TorchCheckpointIO):
    """Writes checkpoints beside their place, so that a kill leaves the last one whole.

    Lightning writes them to the system's temporary folder. If that is another file system, a kill
    can leave a part of a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with draft(Path(path)) as file:
            torch.save(checkpoint, file)


class _Progress(Callback):
    """Shows the steps and the time left; prints each validation and adds it to the curve.

    A resumed run drops the points after its checkpoint.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.file = run, run.folder / _CURVE
        self.points, self.began = list[Point](), 0.0
        self.steps: Iterator[int] = iter(())

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        known = read_if_whole(self.file, _points) or []
        done = trainer.global_step * self.run.step
        self.points = [point for point in known if point.tokens <= done]
        self.began = time.monotonic() - (self.points[-1].seconds if self.points else 0)
        self.steps = track(range(trainer.global_step, self.run.steps), "Training")
        self.shown = next(self.steps, 0)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step > self.shown:
            self.shown = next(self.steps, self.run.steps)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        nll, step = float(trainer.callback_metrics[NLL]), trainer.global_step
        say(f"Step {step} of {self.run.steps}: {NLL} {nll:.4f}")
        seconds = time.monotonic() - self.began
        self.points.append(Point(step * self.run.step, nll, seconds))
        if trainer.is_global_zero:
            write_json(self.file, {"points": self.points})


class _Running(LightningEnvironment):
    """Processes that Fabric has started; the Trainer starts no others.

    `LightningEnvironment` reads environment variables that Slurm does not set, and removes those of
    torchrun when a training ends, although Fabric reads them in the next one.
    """

    def __init__(self, ranks: Fabric) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.ranks.local_rank

    def node_rank(self) -> int:
        return self.ranks.node_rank

    def teardown(self) -> None:
        pass
