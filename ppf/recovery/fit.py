"""Runs Lightning's Trainer: checkpoints, early stop, resumption."""

import gc
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Fabric, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    WeightAveraging,
)
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from ppf.artefacts import draft, locked, read_if_whole, remove_drafts
from ppf.progress import console, quiet_trainer, say, training_bar
from ppf.recovery.computing import reusing_memory
from ppf.recovery.curve import Point, Trace, add_point, read_curve, read_points
from ppf.recovery.data import WindowSampler
from ppf.recovery.module import NLL, TunedModule
from ppf.recovery.settings import TrainingRun

_BEST, _CURVE, _LAST = "best.ckpt", "curve.json", "last.ckpt"


def fit(
    module: TunedModule, training: TensorDataset, validation: TensorDataset, run: TrainingRun
) -> Trace:
    """Trains a module, from its last checkpoint if there is one.

    It ends with the weights that were best in validation. Of several runs with the same folder, one
    trains and the others wait for its result. Damaged files count as missing.

    Raises:
        PPFError: the loss is not finite.
        torch.OutOfMemoryError: the micro-batch is too large.
    """
    finished = run.folder / "finished.ckpt"
    ranks, device = run.machine.ranks, next(module.parameters()).device
    with locked(finished) if ranks.is_global_zero else nullcontext():
        if ranks.is_global_zero:
            for name in (_LAST, _BEST, _CURVE):
                remove_drafts(run.folder / name)
        found = read_if_whole(finished, _result) if ranks.is_global_zero else None
        if ranks.broadcast(found is None):
            _train(module, _loaders(training, validation, run), run)
            gc.collect()  # the Trainer and the optimizer refer to each other
            if ranks.is_global_zero:
                (run.folder / _BEST).rename(finished)
                (run.folder / _LAST).unlink()
        ranks.broadcast(None)  # the weights are stored
    weights, curve = found or _result(finished)
    module.load_state_dict(weights)
    module.to(device)  # the Trainer leaves it on the CPU
    return Trace(curve[-1].tokens, curve[-1].seconds, curve if module.monitor == NLL else [])


def _result(finished: Path) -> tuple[dict[str, Tensor], list[Point]]:
    """The weights and the loss curve of a finished training."""
    return _checkpoint(finished)["state_dict"], read_points(finished.with_name(_CURVE))


def _checkpoint(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _train(module: TunedModule, loaders: tuple[DataLoader, DataLoader], run: TrainingRun) -> None:
    last, ranks = run.folder / _LAST, run.machine.ranks
    both = last, run.folder / _BEST
    whole = ranks.is_global_zero and all(read_if_whole(x, _checkpoint) is not None for x in both)
    resumed = last if ranks.broadcast(whole) else None
    with quiet_trainer(), reusing_memory():
        _trainer(module, run).fit(module, *loaders, ckpt_path=resumed, weights_only=True)


def _loaders(
    training: TensorDataset, validation: TensorDataset, run: TrainingRun
) -> tuple[DataLoader, DataLoader]:
    settings, machine = run.settings, run.machine
    sampler = WindowSampler(
        len(training),
        batch=settings.batch,
        steps=settings.epoch(run.window),
        first=run.first,
        seed=run.seed,
        rank=machine.ranks.global_rank,
        ranks=machine.ranks.world_size,
    )
    size = settings.micro_batch
    return DataLoader(training, size, sampler=sampler), DataLoader(validation, size)


def _trainer(module: TunedModule, run: TrainingRun) -> Trainer:
    settings, machine, ranks = run.settings, run.machine, run.machine.ranks
    at_once = settings.micro_batch * ranks.world_size
    own: dict[str, Any] = {
        "plugins": [
            _Running(ranks) if ranks.world_size > 1 else LightningEnvironment(),
            _Drafted(),
        ],
        "max_epochs": settings.epochs(run.window),
        "accumulate_grad_batches": settings.batch // at_once,
        "logger": list(machine.loggers),
        "callbacks": _callbacks(module, run),
        "enable_progress_bar": _bar(),
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
        "default_root_dir": run.folder,
    }
    # Norms of blocks that pruning has emptied have no gradients. One process needs no DDP.
    own["strategy"] = "ddp_find_unused_parameters_true" if ranks.world_size > 1 else "auto"
    return Trainer(**{**machine.trainer, **own})


def _callbacks(module: TunedModule, run: TrainingRun) -> list[Callback]:
    """Checkpoints come last, because they store the states of the other callbacks."""
    settings, folder, monitor = run.settings, run.folder, module.monitor
    # Lightning leaves averages out of checkpoints without optimizer states.
    lean = not settings.ema
    best = _Best(folder, "best", monitor, save_weights_only=lean, enable_version_counter=False)
    last = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    # This average leaves weights that are not trained exactly as they are; that of Lightning's
    # `EMAWeightAveraging` rounds them.
    mean = get_ema_multi_avg_fn(settings.ema)
    where = next(module.parameters()).device
    average = [WeightAveraging(where, False, multi_avg_fn=mean)] if settings.ema else []
    bar = [training_bar()] if _bar() else []
    patience = settings.patience
    stop = [] if patience is None else [EarlyStopping(monitor, patience=patience)]
    return [*average, *bar, _Progress(monitor, run), *stop, best, last]


def _bar() -> bool:
    return console.is_terminal and not console.quiet


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


class _Best(ModelCheckpoint):
    """Remembers the best score also if the folder was moved before a run was resumed."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


class _Progress(Callback):
    """Prints a line after each validation and adds it to the curve."""

    def __init__(self, monitor: str, run: TrainingRun) -> None:
        self.monitor, self.run, self.began = monitor, run, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        done = trainer.global_step * self.run.step
        points = [p for p in read_curve(self.run.folder / _CURVE) if p.tokens <= done]
        self.began = time.monotonic() - (points[-1].seconds if points else 0)
        # A run may be killed after its early stop, which Lightning does not store.
        for stop in trainer.early_stopping_callbacks:
            trainer.should_stop |= stop.wait_count >= stop.patience

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        value, step = float(trainer.callback_metrics[self.monitor]), trainer.global_step
        say(f"Step {step} of {self.run.steps}: {self.monitor} {value:.4f}")
        if trainer.is_global_zero:
            seconds = time.monotonic() - self.began
            add_point(self.run.folder / _CURVE, Point(step * self.run.step, value, seconds))


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
