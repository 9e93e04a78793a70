"""recover: a pruned model is trained to predict as the dense model does."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from ppf.artefacts import digest, draft, signature, write_json
from ppf.errors import PPFError
from ppf.evaluation.perplexity import mean_nll
from ppf.export.huggingface import HuggingFace, export_recovered
from ppf.export.loading import load_folder
from ppf.llm import LanguageModel, adapter_for, load
from ppf.llm.loading import resolve_dtype
from ppf.llm.text import Part, build_text, training_text
from ppf.llm.windows import check_window
from ppf.progress import say
from ppf.ranks import on_rank_0
from ppf.recovery.settings import Machine, RecoverySettings, TrainingRun, computed_in
from ppf.recovery.tuners import Task
from ppf.report.scores import LogPerplexity
from ppf.stages.policy import check_signature, policy_config, read_policy
from ppf.stages.prune import compensated
from ppf.stages.signatures import plain, text_identity

_PARTS: tuple[Part, ...] = ("training", "validation")
_COSTS = ("micro_batch", "gradient_checkpointing")  # change memory and time, not the result


@dataclass(frozen=True)
class Recovered:
    """What recovery training reached on the validation part, nats per token."""

    folder: Path
    dense: float
    pruned: float
    recovered: float

    @property
    def won_back(self) -> float | None:
        """Share of the lost nats that recovery won back; None: pruning lost none."""
        lost = self.pruned - self.dense
        return (self.pruned - self.recovered) / lost if lost > 0 else None


def recover(cfg: DictConfig, fabric: Fabric) -> Recovered:
    """Trains the model of `cfg.policy` or `cfg.path`, and writes it to the folder `cfg.out`.

    A killed run resumes with the same command: checkpoints lie below `paths.artefacts`, named by
    all that determines the training.

    Raises:
        PPFError: the policy, folder or text cannot be used, or the loss is not finite.
    """
    start = Path(cfg.path) if cfg.path else _pruned(cfg, fabric)
    record = read_policy(start / "policy.json", cfg.trust_targets)
    work = _Recovery(cfg, fabric, start, record)
    dense, pruned = work.score(work.teacher), work.score(work.student)
    began = time.monotonic()
    tokens = work.run()
    minutes = (time.monotonic() - began) / 60
    found = Recovered(Path(cfg.out), dense, pruned, work.score(work.student))
    if fabric.is_global_zero:
        record["recovered"] = work.record(found, tokens, minutes)
        export_recovered(work.student.model, resolve_dtype(cfg.dtype), start, found.folder, record)
        write_json(Path(cfg.paths.run) / "summary.json", record["recovered"])
    return found


def _pruned(cfg: DictConfig, fabric: Fabric) -> Path:
    """The folder that prune.py would write for `cfg.policy`, in float32; made once."""
    record = read_policy(cfg.policy, cfg.trust_targets)
    name = signature("pruned", record["signatures"]["labels"], record["kept"], cfg.sequential)
    folder = Path(cfg.paths.artefacts) / "pruned" / name
    if fabric.broadcast((folder / "policy.json").is_file()):
        say(f"Reusing the pruned model in {folder}.")
        return folder
    exporter = HuggingFace()
    given = OmegaConf.merge(cfg, {"dtype": "float32"})
    assert isinstance(given, DictConfig)
    context, record = compensated(given, fabric, record, exporter)

    def write() -> None:
        with draft(folder) as made:
            exporter.write(context.pruner, made, record)

    on_rank_0(fabric, write)
    return folder


class _Recovery:
    """The models and windows of one recovery.

    Args:
        start: the pruned model's folder.
        record: its policy.json.
    """

    def __init__(
        self, cfg: DictConfig, fabric: Fabric, start: Path, record: dict[str, Any]
    ) -> None:
        self.cfg, self.fabric, self.start = cfg, fabric, start
        config = policy_config(record, cfg)
        check_signature(record, config)
        self._load()
        check_window(cfg.text.window, self.student.model.config)
        self.text = build_text(training_text(cfg.text), cfg.paths.cache)
        self.training, self.validation = (
            self.text.tokens(part, self.student.tokenizer) for part in _PARTS
        )
        if len(self.training) < cfg.recovery.batch:
            raise PPFError(
                f"the training part of text={cfg.text.name} has {len(self.training)} windows, less"
                f" than recovery.batch={cfg.recovery.batch}: lower it, or give a longer text."
            )
        config.model.dtype = str(computed_in(self._machine.precision)).removeprefix("torch.")
        self.teacher = load(config.model, cfg.paths.cache, device=fabric.device)
        self.losses = {name: instantiate(loss) for name, loss in cfg.loss.items()}

    def _load(self) -> None:
        model, tokenizer = load_folder(self.start, torch.float32, trust_remote_code=False)
        self.fabric.to_device(model)
        self.student = LanguageModel(model, tokenizer, adapter_for(model.config))

    def score(self, lm: LanguageModel) -> float:
        """The mean negative log-likelihood on the validation part, nats per token."""
        with self._machine.autocast(lm.model):
            return mean_nll(lm.model, self.validation, batch=self.cfg.recovery.micro_batch)

    def run(self) -> int:
        """Trains the student; returns the number of tokens that were read."""
        settings = RecoverySettings(**self.cfg.recovery)
        while True:
            try:
                return sum(self._tune(name, settings) for name in self.cfg.tune)
            except torch.OutOfMemoryError:
                if settings.micro_batch == 1:
                    raise
            settings = settings.halved()
            say(f"Out of memory: going on with {settings.micro_batch} windows at a time.")
            torch.cuda.empty_cache()
            self._load()

    def _tune(self, name: str, settings: RecoverySettings) -> int:
        say(f"Recovering with tune={name} and loss={'+'.join(self.losses)}.")
        cfg, tuner = self.cfg, instantiate(self.cfg.tune[name])
        folder = Path(cfg.paths.artefacts) / "recovery" / self._signature(name)
        run = TrainingRun(settings, self._machine, folder, self.text.window, cfg.seed)
        task = Task(self.student, self.teacher, self.losses, self.training, self.validation)
        return tuner.tune(task, run)

    @cached_property
    def _machine(self) -> Machine:
        fabric, devices = self.fabric, plain(self.cfg.fabric)
        where = {k: devices[k] for k in ("accelerator", "devices", "num_nodes", "strategy")}
        loggers = [logger for logger in fabric.loggers if isinstance(logger, Logger)]
        trainer = plain(self.cfg.trainer) | where
        return Machine(fabric, fabric.global_rank, fabric.world_size, trainer, loggers)

    def _signature(self, name: str) -> str:
        """Hashes all that determines the training up to one trainer of `tune=`."""
        cfg = self.cfg
        own = OmegaConf.create({"text": training_text(cfg.text), "paths": cfg.paths})
        names = list(cfg.tune)
        chain = [(n, plain(cfg.tune[n])) for n in names[: names.index(name) + 1]]
        weights = [
            digest(f, Path(cfg.paths.cache)) for f in sorted(self.start.glob("*.safetensors"))
        ]
        recovery = {k: v for k, v in plain(cfg.recovery).items() if k not in _COSTS}
        trainer = {k: v for k, v in plain(cfg.trainer).items() if k != "log_every_n_steps"}
        texts = [text_identity(own, part) for part in _PARTS]
        return signature(
            "recovery", weights, texts, plain(cfg.loss), chain, recovery, trainer, cfg.seed
        )

    def record(self, found: Recovered, tokens: int, minutes: float) -> dict[str, Any]:
        """The entry `recovered` of policy.json."""
        scores = {name: getattr(found, name) for name in ("dense", "pruned", "recovered")}
        return {
            "tune": list(self.cfg.tune),
            "loss": list(self.cfg.loss),
            "tokens": tokens,
            "minutes": round(minutes, 2),
            "text": self.text.name,
            "windows": len(self.validation),
            "window": self.text.window,
            "precision": self._machine.precision,
            "seed": self.cfg.seed,
            **{name: LogPerplexity(nll).record() for name, nll in scores.items()},
            "won_back": found.won_back,
        }
