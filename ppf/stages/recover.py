"""recover: trains a pruned model, by default by distillation from the dense model."""

import copy
import gc
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig
from torch import nn

from ppf.artefacts import get_or_make, read_if_whole, signature, write_json
from ppf.conf import plain
from ppf.digests import digest, with_code
from ppf.evaluation.perplexity import Piece, mean_nll, pieces_nll
from ppf.export import Pruned, load_folder, read_description
from ppf.export.huggingface import HuggingFace
from ppf.export.loading import as_pruned
from ppf.llm import LanguageModel, adapter_for, load
from ppf.llm.divide import check_division
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import model_identity
from ppf.policy_file import checked_config, policy_config, read_policy, refuse_types
from ppf.progress import say
from ppf.recovery.curve import Trace
from ppf.recovery.inputs import (
    RecoveryText,
    check_batch,
    in_float32,
    loss_names,
    losses_of,
    machine_of,
    recovered_of,
    run_of,
    test_windows,
    tuner_of,
    with_enough_memory,
)
from ppf.recovery.likeliest import Likeliest, read_likeliest, write_likeliest
from ppf.recovery.losses import RecoveryLoss, likeliest_needed
from ppf.recovery.results import Recovered, RecoveryScore
from ppf.recovery.settings import RecoverySettings, computed_in
from ppf.recovery.tuners import TuningTask
from ppf.report.scores import LogPerplexity
from ppf.stages.prune import compensated
from ppf.text.parts import build_text
from ppf.text.training import training_name


def recover(cfg: DictConfig, fabric: Fabric) -> Recovered:
    """Trains the model of `cfg.policy` or `cfg.path`, and writes it to the folder `cfg.out`.

    A killed run resumes with the same command: checkpoints lie below `paths.artefacts`, under a
    hash of everything that determines the training.

    Raises:
        PPFError: the policy, folder or text cannot be used, or the loss is not finite.
    """
    check_batch(cfg, fabric)
    record = read_policy(cfg.policy or Path(cfg.path) / "policy.json", cfg.trust_targets)
    refuse_types(record, "recovery training")
    text = RecoveryText(cfg, policy_config(record, cfg))
    start = Path(cfg.path) if cfg.path else _pruned(cfg, fabric, record, text)
    gc.collect()  # the dense model that was pruned is part of a reference cycle
    if cfg.policy:  # the folder may have been made for another policy.json with the same policy
        exported = read_policy(start / "policy.json", cfg.trust_targets)["exported"]
        record |= {"exported": exported}
    work = _Recovery(cfg, fabric, start, record, text)
    before = work.scores(work.teacher), work.scores(work.student)
    fitted = work.run()
    ratio = record["budget"]["saved"]
    scores = [
        RecoveryScore(ratio, *each) for each in zip(*before, work.scores(work.student), strict=True)
    ]
    found = recovered_of(fitted, scores[:1], scores[1:])
    if fabric.is_global_zero:
        record["recovered"] = work.record(found)
        if record.get("exported"):
            record["exported"] = work.exported()
        # The stored folder may have another chat template than the dense model has today.
        tokenizer = (work.teacher if cfg.policy else work.student).tokenizer
        student: Any = work.student.model
        model = as_pruned(student.to(resolve_dtype(cfg.dtype)), tokenizer)
        HuggingFace().write(model, Path(cfg.out), record)
        test = [score.record() for score in found.test]
        write_json(Path(cfg.paths.run) / "summary.json", record["recovered"] | {"test": test})
    return found


def _pruned(cfg: DictConfig, fabric: Fabric, record: dict[str, Any], text: RecoveryText) -> Path:
    """The folder that prune.py would write for `cfg.policy`, in float32; made once."""
    refitted = cfg.sequential and {"windows": cfg.refit_windows}
    name = signature("pruned", record["signatures"]["labels"], record["kept"], refitted)
    folder = Path(cfg.paths.artefacts) / "pruned" / name

    def read(path: Path) -> Path:
        read_policy(path / "policy.json", cfg.trust_targets)
        read_description(path)
        return path

    if fabric.broadcast(fabric.is_global_zero and read_if_whole(folder, read)):
        say(f"Reusing the pruned model in {folder}.")
        return folder
    context, record = compensated(in_float32(cfg), fabric, record, text.check)

    def make(draft: Path) -> None:
        HuggingFace().write(Pruned.of(context.model.pruner), draft, record)

    return get_or_make(folder, read=read, make=make, ranks=fabric)


class _Recovery:
    """The models and windows of one recovery.

    Args:
        start: the pruned model's folder.
        record: its policy.json.
        text: what it reads.
    """

    def __init__(
        self,
        cfg: DictConfig,
        fabric: Fabric,
        start: Path,
        record: dict[str, Any],
        text: RecoveryText,
    ) -> None:
        self.cfg, self.fabric, self.start, self._record = cfg, fabric, start, record
        self.text = text
        self.machine = machine_of(cfg, fabric)
        self.config = checked_config(record, cfg)
        self.student = self._load()
        self.training, self.validation = text.windows(self.student)
        self.test = test_windows(cfg, self.student)
        dtype = dtype_name(computed_in(self.machine.precision))
        dense = DictConfig({**self.config.model, "dtype": dtype})
        check_division(dense, fabric.device, fabric.world_size)
        self.teacher = load(dense, cfg.paths.cache, device=fabric.device)

    def _load(self) -> LanguageModel:
        model, tokenizer = load_folder(self.start, torch.float32, trust_remote_code=False)
        self.fabric.to_device(model)
        return LanguageModel(model, tokenizer, adapter_for(model.config))

    def scores(self, lm: LanguageModel) -> list[float]:
        """Mean negative log-likelihoods on validation and, if requested, test; nats per token.

        All models are measured in the number format of the computation.
        """
        parts, batch = [self.validation, *self.test], self.cfg.recovery.micro_batch
        # Only parameters are rounded: rotary frequencies are buffers and stay in float32.
        dtype = self.teacher.dtype
        model = lm.model
        if lm.dtype != dtype:
            rounded = {id(p): nn.Parameter(p.to(dtype), False) for p in model.parameters()}
            model = copy.deepcopy(model, rounded)
        return [mean_nll(model, part, batch=batch) for part in parts]

    def run(self) -> Trace:
        """Trains the student."""

        def train(settings: RecoverySettings) -> Trace:
            if settings.micro_batch < self.cfg.recovery.micro_batch:
                del self.student  # before it is loaded again
                self.student = self._load()
            names = list(self.cfg.tune)
            shared = replace(settings, tokens=settings.tokens // len(names))
            traces = [self._tune(name, shared) for name in names]
            self._warn_of_later(dict(zip(names, traces, strict=True)))
            return reduce(Trace.then, traces)

        return with_enough_memory(self.cfg, self.fabric, train)

    def _warn_of_later(self, traces: Mapping[str, Trace]) -> None:
        """Warns if the last tuner leaves a higher loss than one before."""
        lows = {n: min(point.value for point in t.curve) for n, t in traces.items() if t.curve}
        best, last = min(lows, key=lambda name: lows[name], default=""), [*traces][-1]
        if last in lows and lows[last] > lows[best]:
            say(
                f"Warning: tune={last} ends with a higher loss than tune={best} before it: leave"
                " it out, or give it a lower learning rate."
            )

    def _tune(self, name: str, settings: RecoverySettings) -> Trace:
        cfg, tuner = self.cfg, tuner_of(self.cfg, name)
        losses = losses_of(cfg) if tuner.reads_losses else {}
        minimised = f" and loss={'+'.join(losses)}" if losses else ""
        say(f"Recovering with tune={name}{minimised}.")
        names, tuners = list(cfg.tune), with_code(plain(cfg.tune), Path(cfg.paths.cache))
        place = names.index(name)
        chain = [(n, tuners[n]) for n in names[: place + 1]]
        reads_losses = any(tuner_of(cfg, n).reads_losses for n, _ in chain)
        trained = self._weights, chain, *([place] if place else [])
        run = run_of(self.text, self.machine, settings, *trained, reads_losses=reads_losses)
        if len(names) > 1:
            run = replace(run, name=f"{name}/", first=place * run.steps)
        windows = self.training, self.validation
        likeliest = self._likeliest(losses, settings.micro_batch)
        task = TuningTask(self.student, self.teacher, losses, *windows, likeliest)
        return tuner.tune(task, run)

    def _likeliest(self, losses: Mapping[str, RecoveryLoss], batch: int) -> Likeliest | None:
        """The dense model's most probable tokens, if the losses need nothing else of it."""
        if not (count := likeliest_needed(losses)):
            return None
        model = (
            model_identity(self.config.model, Path(self.config.paths.cache)),
            str(self.teacher.dtype),
        )
        windows = hashlib.sha256(self.training.numpy().tobytes()).hexdigest()
        name = signature("likeliest", *model, list(self.training.shape), windows, count)

        def make(file: Path) -> None:
            say(f"Storing the dense model's {count} most probable tokens at every position.")
            write_likeliest(file, self.teacher.model, self.training, count, batch)

        file = Path(self.cfg.paths.artefacts) / "likeliest" / f"{name}.safetensors"
        return get_or_make(file, read=read_likeliest, make=make, ranks=self.fabric)

    @cached_property
    def _weights(self) -> list[str]:
        """Digests of the pruned model's weights."""
        files = sorted(self.start.glob("*.safetensors"))
        return [digest(file, Path(self.cfg.paths.cache)) for file in files]

    def exported(self) -> dict[str, Any]:
        """The entry `exported` of policy.json, with the trained model's loss (labelling part)."""
        known, labels = dict(self._record["exported"]), self.config.labels
        text = build_text(self.config.text, self.cfg.paths.cache)
        piece = Piece(text.tokens("labelling", self.student.tokenizer), labels.context)
        # In the dtype in which the pruning command measured the other values of the model card.
        dtype, model = getattr(torch, known["dtype"]), self.student.model
        if dtype != model.dtype:
            model, _ = load_folder(self.start, dtype, trust_remote_code=False)
            model.load_state_dict(self.student.model.state_dict())
            self.fabric.to_device(model)
        nll = pieces_nll(model, [piece], batch=labels.batch)
        measured = known["measured"] | {"recovered": LogPerplexity(nll).record()}
        return known | {"compensation": "recovered", "measured": measured}

    def record(self, found: Recovered) -> dict[str, Any]:
        """The entry `recovered` of policy.json."""
        (score,), (windows, window) = found.scores, self.validation.shape
        nlls = {name: getattr(score, name) for name in ("dense", "pruned", "recovered")}
        return {
            "tune": list(self.cfg.tune),
            "loss": loss_names(self.cfg),
            "tokens": found.tokens,
            "minutes": round(found.minutes, 2),
            "text": training_name(self.cfg.text),
            "windows": windows,
            "window": window,
            "precision": self.machine.precision,
            "seed": self.cfg.seed,
            **{name: LogPerplexity(nll).record() for name, nll in nlls.items()},
            "won_back": score.won_back,
        }
