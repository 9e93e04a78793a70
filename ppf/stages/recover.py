"""recover: trains a pruned model, by default by distillation from the dense model.

`policy=` and `path=` name a model of one pruning ratio; its weights are trained. `search=` names a
search for all ratios; one set of low-rank adapters is trained for them. A killed run resumes with
the same command: its checkpoints lie below `paths.artefacts`, under a hash of all that determines
the training.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from ppf.agents.ratio_agent import load_agent
from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.export import check_out, read_pruned
from ppf.overrides import quoted
from ppf.policy_file import checked_config, read_policy, refuse_recovered, refuse_types
from ppf.progress import say
from ppf.recovery.inputs import RecoveryText, mean_nlls, training_run, weights_identity
from ppf.recovery.training import Point, TrainingRun
from ppf.report.publish import publish_file
from ppf.runtime.resident import adapter_identity, resident, save_adapters
from ppf.stages.about import about, next_command
from ppf.stages.distillation import load_teacher, pruned_folder, write_recovered
from ppf.stages.lineage import log_artifact, log_used
from ppf.stages.outcome import Outcome

_MODELS = ("dense", "pruned", "recovered")


def check(cfg: DictConfig) -> None:
    """Refuses what cannot be recovered, and a folder `out` whose model would be lost."""
    if sum(bool(cfg[key]) for key in ("policy", "path", "search")) != 1:
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (a folder that prune wrote)"
            " and search=FOLDER (of a search with mode=dynamic|chain)."
        )
    if cfg.search:
        agent = load_agent(cfg.search, cfg.trust_targets)
        for ratio in cfg.ratios:
            agent.policy(ratio)
        record, start = agent.record, cfg.search
    else:
        record = read_policy(_policy_file(cfg), cfg.trust_targets)
        start = _policy_file(cfg).parent
        refuse_types(record, "recovery training")
        if cfg.policy:
            refuse_recovered(record, cfg.policy)
        if record.get("recovered"):
            raise PPFError(
                f"{start} is already a recovered model: give the folder that prune wrote, and a"
                " larger recovery.tokens."
            )
    check_out(cfg.out, record, start)


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Recovers a model; the metric is nats per token on the validation part, mean over ratios."""
    job = _AllRatios(cfg, fabric) if cfg.search else _OneRatio(cfg, fabric)
    before = job.measured()
    curve = job.train()
    after = job.measured()
    validated, *tested = (
        [
            _row(ratio, job.dense[part], old[part], new[part])
            for ratio, old, new in zip(job.ratios, before, after, strict=True)
        ]
        for part in range(len(job.parts))
    )
    test = tested[0] if tested else []
    training = {
        "tune": ["adapters"] if cfg.search else [*cfg.tune],
        "loss": [*cfg.loss],
        "tokens": curve[-1].tokens,
        "minutes": round(curve[-1].seconds / 60, 2),
        "text": job.text.training_name,
        "windows": len(job.parts[0]),
        "window": cfg.text.window,
        "precision": cfg.trainer.precision,
        "seed": cfg.seed,
    }
    named = {key: "+".join(training[key]) for key in ("tune", "loss")}
    if fabric.is_global_zero:
        job.write(training, validated)
        given = f"search={quoted(cfg.out)}" if cfg.search else f"path={quoted(cfg.out)}"
        following = {"Measure it on the test part": next_command("evaluate", given, "latency=true")}
        if cfg.search:
            following = {"Serve the model at any ratio": next_command("serve", given)}
        summary = {
            **about("recover"),
            "title": f"Recovery of {cfg.policy or cfg.path or cfg.search}",
            "text": job.text.name,
            "results": validated,
            "test": test,
            "curve": [(point.tokens, point.nll) for point in curve],
            "settings": training | named,
            "next_commands": following,
        }
        file = Path(cfg.paths.run) / "summary.json"
        write_json(file, summary)
        log_used(cfg, fabric.loggers)
        out = Path(cfg.out)
        log_artifact(fabric.loggers, [out], out.resolve().name, "model")
        publish_file(file, "recover", fabric.loggers)
    say(f"Written to {cfg.out}")
    same = {
        "method": job.method,
        "mode": "all ratios" if cfg.search else "static",
        "part": "test" if test else "validation",
        **named,
        **{key: training[key] for key in ("tokens", "minutes", "text", "seed")},
    }
    rows = [
        {"ratio": asked, **{f"nll_{name}": row[name] for name in reversed(_MODELS)}}
        | {"won_back": row["won_back"], **same}
        for asked, row in zip(job.asked, test or validated, strict=True)
    ]
    return Outcome(fmean(row["recovered"] for row in validated), rows)


class _Recovery(ABC):
    """The models of a recovery, and the windows that they read.

    Attributes:
        parts: windows of the parts of the text on which the models are measured.
        ratios: what the models save of the budget.
        asked: the ratios that the searches were asked for.
        method: name of what chose the policies.
        dense: mean negative log-likelihood of the dense model on each part, nats per token.
    """

    ratios: Sequence[float]
    asked: Sequence[float]
    method = "PPF"
    dense: Sequence[float]

    def __init__(self, cfg: DictConfig, fabric: Fabric, record: Mapping[str, Any]) -> None:
        self.cfg, self.fabric, self.config = cfg, fabric, checked_config(record, cfg)
        self.dtype = instantiate(cfg.trainer).dtype
        self.text = RecoveryText(cfg, self.config)
        # Too little text is refused here, before the long work.
        self.windows, self.parts = self.text.read(self.config.model)

    @abstractmethod
    def measured(self) -> list[list[float]]:
        """Mean negative log-likelihood at each ratio, on each part; nats per token."""

    @abstractmethod
    def train(self) -> list[Point]:
        """Trains the model; returns the loss curve, whose values are means over the ratios."""

    @abstractmethod
    def write(self, training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes what was trained to `out`."""

    def run(self, trained: Sequence[Any]) -> TrainingRun:
        """The training; `trained`: what determines the model, and what is trained of it."""
        return training_run(self.text, self.fabric, self.windows, trained)


class _OneRatio(_Recovery):
    """The model of `policy=` or `path=`; its weights are trained."""

    def __init__(self, cfg: DictConfig, fabric: Fabric) -> None:
        self.record = record = read_policy(_policy_file(cfg), cfg.trust_targets)
        super().__init__(cfg, fabric, record)
        self.start = Path(cfg.path or pruned_folder(cfg, fabric, record))
        gc.collect()  # the dense model that was pruned is part of a reference cycle
        if cfg.policy:  # the folder may have been made for another file with the same policy
            stored = read_policy(self.start / "policy.json", cfg.trust_targets)
            record |= {key: stored[key] for key in ("exported", "ratio")}
        self.student = read_pruned(self.start, torch.float32)
        fabric.to_device(self.student.lm.model)
        self.teacher = load_teacher(self.config, self.dtype, fabric)
        self.ratios, self.asked = [record["budget"]["saved"]], [record["ratio"]["asked"]]
        self.method = "uniform" if record["kept"] == record["uniform"]["kept"] else "PPF"
        self.dense = self._nlls(self.teacher.model)

    def measured(self) -> list[list[float]]:
        return [self._nlls(self.student.lm.model)]

    def _nlls(self, model: PreTrainedModel) -> list[float]:
        return mean_nlls(model, self.parts, self.dtype, self.cfg.recovery.micro_batch)

    def train(self) -> list[Point]:
        ((name, tuner),) = instantiate(self.cfg.tune).items()
        say(f"Recovering with tune={name} and loss={'+'.join(self.cfg.loss)}.")
        run = self.run(weights_identity(self.start, self.cfg))
        student, teacher = self.student.lm.model, self.teacher.model
        return tuner.tune(student, teacher, instantiate(self.cfg.loss), run)

    def write(self, training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        if self.cfg.policy:  # the stored folder may have another chat template than the dense model
            self.student.lm.tokenizer = self.teacher.tokenizer
        write_recovered(self.cfg, self.student, self.record, self.config, training, rows[0])


class _AllRatios(_Recovery):
    """Adapters for all ratios of the search in `search=`, whose folder `out` can replace."""

    def __init__(self, cfg: DictConfig, fabric: Fabric) -> None:
        self.agent = agent = load_agent(cfg.search, cfg.trust_targets)
        if fabric.device.type != "cpu" and agent.record["config"]["model"].get("offload"):
            raise PPFError("recovery with search= cannot train offloaded weights: give fabric=cpu.")
        super().__init__(cfg, fabric, agent.record)
        given = OmegaConf.create({**cfg, "dtype": "float32"})
        self.context = resident(given, fabric, agent.record, adapted=False)
        self.model = self.context.model
        agent.check_sites(self.model.space)
        self.dense = self._nlls(self.model.space.dense.tolist())
        self.elastic = instantiate(cfg.elastic)
        self.adapters = self.elastic.attach(self.model.pruner, cfg.seed)
        self.ratios = self.asked = list(cfg.ratios)

    def measured(self) -> list[list[float]]:
        return [self._nlls(self.agent.policy(ratio)) for ratio in self.ratios]

    def _nlls(self, kept: list[int]) -> list[float]:
        rounding = self.dtype != torch.float32
        autocast = torch.autocast(self.fabric.device.type, self.dtype, enabled=rounding)
        with self.model.pruner.at(kept) as model, autocast:
            return mean_nlls(model, self.parts, model.dtype, self.cfg.recovery.micro_batch)

    def train(self) -> list[Point]:
        agent, labels = self.agent, self.context.signatures.labels
        trained = [
            "elastic",
            [labels, adapter_identity(self.context), agent.record["ratios"], self.ratios],
            [agent.knots.tolist(), agent.widths.tolist(), agent.space.prices],
            self.elastic.identity(),
        ]
        policies = agent.policy, float(agent.knots[-1]), self.ratios
        losses, run = instantiate(self.cfg.loss), self.run(trained)
        return self.elastic.tune(self.adapters, self.model.pruner, *policies, losses, run)

    def write(self, training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        save_adapters(self.cfg, self.adapters, self.context, training)


def _policy_file(cfg: DictConfig) -> Path:
    return Path(cfg.path, "policy.json") if cfg.path else Path(cfg.policy)


def _row(ratio: float, dense: float, pruned: float, recovered: float) -> dict[str, Any]:
    """Losses at one ratio, nats per token, and the share of the lost nats that is won back."""
    lost, won = pruned - dense, pruned - recovered
    losses = dict(zip(_MODELS, (dense, pruned, recovered), strict=True))
    return {"ratio": ratio, **losses, "won_back": won / lost if lost > 0 else None}
