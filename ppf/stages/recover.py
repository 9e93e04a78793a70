"""recover: trains a pruned model, by default by distillation from the dense model.

`policy=` and `path=` name a model of one pruning ratio; its weights are trained. `search=` names a
search for all ratios; one set of low-rank adapters is trained for them. A killed run resumes with
the same command: its checkpoints lie below `paths.artefacts`, under a hash of all that determines
the training.
"""

import copy
import gc
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.agents.ratio_agent import load_agent
from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.export.files import refuse_foreign, refuse_overwriting, refuse_overwriting_dense
from ppf.export.huggingface import export_recovered
from ppf.export.loading import read_pruned
from ppf.export.pruned import Pruned
from ppf.llm.loading import LanguageModel, dtype_name, load, resolve_dtype
from ppf.overrides import quoted
from ppf.policy_file import (
    checked_config,
    policy_config,
    read_policy,
    refuse_recovered,
    refuse_types,
)
from ppf.progress import say
from ppf.records.run import Outcome
from ppf.recovery.elastic import Elastic
from ppf.recovery.fit import Point
from ppf.recovery.inputs import (
    RecoveryText,
    labelling_nll,
    mean_nlls,
    training_run,
    weights_identity,
    with_enough_memory,
)
from ppf.recovery.results import Recovered, RecoveryScore
from ppf.recovery.training import RecoverySettings
from ppf.report.html import write_page
from ppf.report.origin import command_line, machine, next_command
from ppf.report.publish import Published, log_artifact, publish
from ppf.report.recovery import recovery_metrics, recovery_page
from ppf.report.scores import LogPerplexity
from ppf.runtime.resident import origin, resident, save_adapters
from ppf.stages.lineage import made, used
from ppf.stages.pruned_folder import pruned_folder
from ppf.text.parts import text_name, training_name

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
    refuse_foreign(cfg.out)
    refuse_overwriting(cfg.out, start)
    refuse_overwriting_dense(cfg.out, record)


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Recovers a model; the metric is nats per token on the validation part, mean over ratios."""
    job = _AllRatios(cfg, fabric) if cfg.search else _OneRatio(cfg, fabric)
    dense, before = job.dense(), job.measured()
    curve = with_enough_memory(instantiate(cfg.recovery), fabric, job.train)
    after = job.measured()
    results, *test = (
        [_row(ratio, dense[part], before[ratio][part], after[ratio][part]) for ratio in before]
        for part in range(len(dense))
    )
    training = {
        "tune": [*cfg.tune] if not cfg.search else ["adapters"],
        "loss": [*cfg.loss],
        "tokens": curve[-1].tokens,
        "minutes": round(curve[-1].seconds / 60, 2),
        "text": training_name(cfg.text),
        "windows": len(job.windows.validation),
        "window": cfg.text.window,
        "precision": cfg.trainer.precision,
        "seed": cfg.seed,
    }
    if fabric.is_global_zero:
        job.write(training, results[0])
        summary = {
            **training,
            "results": results,
            "test": test[0] if test else [],
            "curve": [(point.tokens, point.nll) for point in curve],
        }
        write_json(Path(cfg.paths.run) / "summary.json", summary)
        _report(cfg, fabric, summary)
    say(f"Written to {cfg.out}")
    same = {
        "method": job.method,
        "tune": "+".join(training["tune"]),
        "loss": "+".join(training["loss"]),
        "mode": "dynamic" if cfg.search else "static",
        **{key: training[key] for key in ("tokens", "minutes", "text", "seed")},
        "part": "test" if test else "validation",
    }
    rows = test[0] if test else results
    figures = [
        {"ratio": asked}
        | {f"nll_{name}": row[name] for name in ("recovered", "pruned", "dense")}
        | {"won_back": row["won_back"], **same}
        for asked, row in zip(job.asked, rows, strict=True)
    ]
    return Outcome(fmean(row["recovered"] for row in results), figures)


class _OneRatio:
    """The model of `policy=` or `path=`; its weights are trained."""

    def __init__(self, cfg: DictConfig, fabric: Fabric) -> None:
        self.cfg, self.fabric = cfg, fabric
        self.record = record = read_policy(_policy_file(cfg), cfg.trust_targets)
        self.text = RecoveryText(cfg, policy_config(record, cfg))
        self.start = Path(cfg.path or pruned_folder(cfg, fabric, record, self.text.check))
        gc.collect()  # the dense model that was pruned is part of a reference cycle
        if cfg.policy:  # the folder may have been made for another file with the same policy
            made = read_policy(self.start / "policy.json", cfg.trust_targets)
            record["exported"] = made["exported"]
        self.config, self.student = checked_config(record, cfg), self._load()
        dtype: torch.dtype = instantiate(cfg.trainer).dtype
        model = DictConfig({**self.config.model, "dtype": dtype_name(dtype)})
        self.teacher = load(model, cfg.paths.cache, device=fabric.device)
        self.windows = self.text.windows(self.student.lm)
        self.parts = [self.windows.validation, *self.text.test(self.student.lm)]
        self.asked = [record["ratio"]["asked"]]
        self.method = "uniform" if record["kept"] == record["uniform"]["kept"] else "PPF"

    def _load(self) -> Pruned:
        student = read_pruned(self.start, torch.float32)
        self.fabric.to_device(student.lm.model)
        return student

    def _nlls(self, lm: LanguageModel) -> list[float]:
        batch = self.cfg.recovery.micro_batch
        return mean_nlls(lm.model, self.parts, self.teacher.dtype, batch)

    def dense(self) -> list[float]:
        """Mean negative log-likelihood of the dense model on each part, nats per token."""
        return self._nlls(self.teacher)

    def measured(self) -> dict[float, list[float]]:
        """The same of the pruned model, by its ratio."""
        return {self.record["budget"]["saved"]: self._nlls(self.student.lm)}

    def train(self, settings: RecoverySettings) -> list[Point]:
        """Trains the pruned model; returns the loss curve."""
        cfg = self.cfg
        if settings.micro_batch < cfg.recovery.micro_batch:  # an attempt before ran out of memory
            del self.student
            self.student = self._load()
        ((name, tuner),) = instantiate(cfg.tune).items()
        say(f"Recovering with tune={name} and loss={'+'.join(cfg.loss)}.")
        trained = weights_identity(self.start, cfg)
        run = training_run(self.text, self.fabric, settings, self.windows, trained)
        student, teacher = self.student.lm.model, self.teacher.model
        return tuner.tune(student, teacher, instantiate(cfg.loss), run)

    def write(self, training: dict[str, Any], row: Mapping[str, Any]) -> None:
        """Writes the trained model, with its policy and a model card, to `cfg.out`."""
        cfg, lm, record = self.cfg, self.student.lm, self.record
        scores = {name: LogPerplexity(row[name]).record() for name in _MODELS}
        record["recovered"] = training | scores | {"won_back": row["won_back"]}
        if known := record.get("exported"):
            nll = labelling_nll(lm, self.config, getattr(torch, known["dtype"]))
            known["measured"]["recovered"] = LogPerplexity(nll).record()
            known["compensation"] = "recovered"
        if cfg.policy:  # the stored folder may have another chat template than the dense model
            lm.tokenizer = self.teacher.tokenizer
        dtype = resolve_dtype(cfg.dtype)
        export_recovered(self.student, dtype, self.start, Path(cfg.out), record)


class _AllRatios:
    """Adapters for all ratios of the search in `search=`."""

    def __init__(self, cfg: DictConfig, fabric: Fabric) -> None:
        self.cfg, self.fabric = cfg, fabric
        self.agent = agent = load_agent(cfg.search, cfg.trust_targets)
        if fabric.device.type != "cpu" and agent.record["config"]["model"].get("offload"):
            raise PPFError("recovery with search= cannot train offloaded weights: give fabric=cpu.")
        self.text = RecoveryText(cfg, policy_config(agent.record, cfg))
        given = OmegaConf.create({**cfg, "dtype": "float32"})
        new = {"adapted": False, "as_trained": False}
        self.context = resident(given, fabric, agent.record, **new, check=self.text.check)
        self.model = self.context.model
        agent.check_sites(self.model.space)
        self.windows = self.text.windows(self.model.lm)
        self.parts = [self.windows.validation, *self.text.test(self.model.lm)]
        self.elastic: Elastic = instantiate(cfg.elastic)
        self.adapters = self.elastic.attach(self.model.pruner, cfg.seed)
        self.untrained = copy.deepcopy(self.adapters.state_dict())
        self.asked, self.method = list(cfg.ratios), "PPF"

    def _nlls(self, kept: list[int]) -> list[float]:
        batch, dtype = self.cfg.recovery.micro_batch, instantiate(self.cfg.trainer).dtype
        autocast = torch.autocast(self.fabric.device.type, dtype, enabled=dtype != torch.float32)
        with self.model.pruner.at(kept) as model, autocast:
            return mean_nlls(model, self.parts, model.dtype, batch)

    def dense(self) -> list[float]:
        """Mean negative log-likelihood of the dense model on each part, nats per token."""
        return self._nlls(self.model.space.dense.tolist())

    def measured(self) -> dict[float, list[float]]:
        """The same of the pruned model at each ratio."""
        return {ratio: self._nlls(self.agent.policy(ratio)) for ratio in self.asked}

    def train(self, settings: RecoverySettings) -> list[Point]:
        """Trains the adapters; returns the loss curve, whose values are means over the ratios."""
        cfg, agent = self.cfg, self.agent
        # An attempt before may have run out of memory.
        self.adapters.to(self.model.lm.device).load_state_dict(self.untrained)
        labels, made_with = self.context.signatures.labels, origin(self.context)
        trained = [
            "elastic",
            [labels, made_with, agent.record["ratios"], self.asked],
            [agent.knots.tolist(), agent.widths.tolist(), agent.space.prices],
            self.elastic.identity(),
        ]
        run = training_run(self.text, self.fabric, settings, self.windows, trained)
        return self.elastic.tune(
            self.adapters,
            self.model.pruner,
            agent.policy,
            float(agent.knots[-1]),
            self.asked,
            instantiate(cfg.loss),
            run,
        )

    def write(self, training: dict[str, Any], row: Mapping[str, Any]) -> None:
        """Writes the agent and its adapters to `cfg.out`, which can replace the search's folder."""
        save_adapters(self.cfg, self.adapters, self.context, training)


def _policy_file(cfg: DictConfig) -> Path:
    return Path(cfg.path, "policy.json") if cfg.path else Path(cfg.policy)


def _report(cfg: DictConfig, fabric: Fabric, summary: Mapping[str, Any]) -> None:
    scores, test = (
        [RecoveryScore(*(row[name] for name in ("ratio", *_MODELS))) for row in summary[part]]
        for part in ("results", "test")
    )
    file = Path(cfg.paths.run) / "report.html"
    found = Recovered(scores, test, summary["tokens"], summary["minutes"], summary["curve"])
    page = recovery_page(
        found,
        title=f"Recovery of {cfg.policy or cfg.path or cfg.search}",
        command=command_line("recover"),
        measured_on=f"Measured on the validation part of {text_name(cfg.text)}.",
        settings={
            "Trained": ", ".join(summary["tune"]),
            "Loss": " + ".join(summary["loss"]),
            "Tokens": f"{summary['tokens']:,}",
            "Computed in": summary["precision"],
            "Minutes": f"{summary['minutes']:.1f}",
            "Seed": str(cfg.seed),
        },
        machine=machine(),
        next_commands=_next_commands(cfg),
    )
    write_page(file, page)
    for artifact in (*used(cfg), made(Path(cfg.out))):
        log_artifact(fabric.loggers, artifact)
    metrics = recovery_metrics(scores) | recovery_metrics(test, "test")
    publish(fabric.loggers, Published.of(page, file, metrics))
    say(f"Report: {file}")


def _next_commands(cfg: DictConfig) -> dict[str, str]:
    """Useful next commands: purpose → command."""
    out = quoted(cfg.out)
    if cfg.search:
        return {"Serve the model at any ratio": next_command("serve", f"search={out}")}
    return {"Measure it on the test part": next_command("evaluate", f"path={out}", "latency=true")}


def _row(ratio: float, dense: float, pruned: float, recovered: float) -> dict[str, Any]:
    """Losses at one ratio, nats per token, and the share of the lost nats that is won back."""
    lost = pruned - dense
    won = (pruned - recovered) / lost if lost > 0 else None
    losses = {"dense": dense, "pruned": pruned, "recovered": recovered}
    return {"ratio": ratio, **losses, "won_back": won}
