"""Recovery: tokens a second against a plain Hugging Face loop, and the peak memory.

    python benchmarks/recovery.py [--ratio 0.3] [--steps 6] [HYDRA OVERRIDES, as for collect.py]

The student is the model after uniform pruning, whose first heads and channels stay. Both loops
train all its weights with AdamW under the same loss (forward KL) on the same windows, in bfloat16
autocast. They take turns, and the median step counts. The plain loop holds all logits and leaves
all gradients to autograd.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from ppf.evaluation.memory import peak_bytes
from ppf.export import Pruned, load_folder
from ppf.export.huggingface import HuggingFace
from ppf.llm import load
from ppf.pruning import Bank, LivePruner
from ppf.pruning.compensation import Levels
from ppf.pruning.order import Order
from ppf.recovery.fit import fit
from ppf.recovery.losses import KL
from ppf.recovery.module import RecoveryModule
from ppf.recovery.training import RecoverySettings, TrainerSettings, TrainingRun, Windows
from ppf.recovery.tuners import Full, without_dropout
from ppf.space import uniform
from ppf.text.parts import build_text
from ppf.text.training import training_text

LR, TURNS, BATCH, VALIDATION, GIB = 3e-4, 2, 4, 4, 2**30
DEVICES = {"accelerator": "cpu", "devices": 1}


class Clocked(RecoveryModule):
    """Keeps the times at which its steps end."""

    def on_train_start(self) -> None:
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, *_: object) -> None:
        self.times.append(time.perf_counter())


def pruner_of(cfg: DictConfig) -> LivePruner:
    """Prunes heads and channels in the order in which they lie, which needs no calibration."""
    lm = load(cfg.model, cfg.paths.cache)
    space = instantiate(cfg.space, [coupling.prunable for coupling in lm.couplings])
    levels = [Levels(torch.zeros(site.units + 1), None, None) for site in space.sites]
    return LivePruner(lm, space, Bank([Order(torch.arange(c.atoms)) for c in lm.couplings], levels))


class Setting:
    """The pruned folder, the dense model and the windows of one benchmark."""

    def __init__(self, overrides: list[str], ratio: float, steps: int, folder: Path) -> None:
        self.folder, self.fabric = folder, Fabric(accelerator="cpu", devices=1)
        with initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose("collect", [f"paths.run={folder}", *overrides])
        pruner = pruner_of(cfg)
        pruner.apply(uniform(pruner.space, torch.tensor([ratio]))[0].tolist())
        policy = {"model": cfg.model.name, "ratio": {"achieved": ratio}}
        HuggingFace().write(Pruned.of(pruner), folder / "pruned", policy)
        model = OmegaConf.merge(cfg.model, {"dtype": "bfloat16"})
        self.teacher = load(model, cfg.paths.cache)
        text = build_text(training_text(cfg.text), cfg.paths.cache)
        training = text.tokens("training", self.teacher.tokenizer)
        validation = text.tokens("validation", self.teacher.tokenizer)[:VALIDATION]
        self.windows, self.tokens = Windows(training, validation), steps * BATCH * text.window

    def student(self) -> PreTrainedModel:
        """A fresh student."""
        return load_folder(self.folder / "pruned", torch.float32)[0]

    def run(self) -> TrainingRun:
        """A run with a new folder."""
        settings = RecoverySettings(self.tokens, BATCH, BATCH, validate_every=10**6)
        trainer = TrainerSettings("bf16-mixed", gradient_clip_val=1.0)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return TrainingRun(settings, trainer, self.fabric, DEVICES, folder, self.windows, seed=0)


def ours(setting: Setting) -> list[float]:
    """Seconds of each step of a recovery."""
    student, run = setting.student().requires_grad_(True), setting.run()
    without_dropout(student)
    module = Clocked(student, setting.teacher.model, {"kl": KL(1.0)}, LR, run.steps)
    fit(module, run)
    return [b - a for a, b in zip(module.times, module.times[1:], strict=False)]


def plain_loop(setting: Setting) -> list[float]:
    """Seconds of each step of a loop as one writes it with Hugging Face's models."""
    student, teacher = setting.student().train().requires_grad_(True), setting.teacher.model
    optimizer, times, windows = torch.optim.AdamW(student.parameters(), LR), [], setting.windows[0]
    for ids in windows[: setting.tokens // windows.shape[1]].split(BATCH):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                goal = teacher(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            logits = student(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        loss = F.kl_div(logits, goal, reduction="sum", log_target=True) / goal[..., 0].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return times


def peak_gib(setting: Setting) -> float:
    """The student's weights and the largest further memory of its training."""
    student, run = setting.student(), setting.run()
    with peak_bytes(student) as peak:
        Full(LR, embeddings=True).tune(student, setting.teacher.model, {"kl": KL(1.0)}, run)
    return (peak.bytes or 0) / GIB


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ratio", type=float, default=0.3, help="pruning ratio")
    parser.add_argument("--steps", type=int, default=6, help="steps of each loop in a turn")
    given, overrides = parser.parse_known_args()
    if given.steps < 2:
        parser.error("the first step warms up: give --steps 2 or more")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(overrides, given.ratio, given.steps, Path(folder))
        seconds: dict[str, list[float]] = {"ours": [], "hf": []}
        for _ in range(TURNS):
            seconds["hf"] += plain_loop(setting)[1:]  # the first step warms up
            seconds["ours"] += ours(setting)[1:]
        each = setting.tokens / given.steps
        rates = {name: each / median(times) for name, times in seconds.items()}
        setting.tokens = 2 * int(each)
        peaks = {"full": peak_gib(setting)}
    for name, rate in rates.items():
        print(f"{name:<10} {rate:8.0f} tokens per second")
    for name, peak in peaks.items():
        print(f"{name:<10} {peak:8.2f} GiB at its peak")
    speedup = rates["ours"] / rates["hf"]
    print(json.dumps({"tokens_per_second": rates, "speedup": speedup, "peak_gib": peaks}))


if __name__ == "__main__":
    main()
