"""ppf-recover: trains a pruned model, by default by distillation from the dense model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.artefacts import write_json
from ppf.cli.app import command
from ppf.cli.checks import refuse_unread
from ppf.commands import python_command
from ppf.errors import PPFError
from ppf.export import check_out
from ppf.llm.sources import local_folder
from ppf.overrides import quoted
from ppf.policy_file import read_policy, refuse_recovered
from ppf.progress import say
from ppf.records.agent import agent_folder
from ppf.records.run import Outcome
from ppf.recovery.inputs import loss_names
from ppf.recovery.results import Recovered
from ppf.report.origin import carried, next_command, origin
from ppf.report.recovery import publish_recovery
from ppf.stages.lineage import log_made, log_used
from ppf.stages.recover import recover
from ppf.stages.recover_dynamic import recover_dynamic
from ppf.text.parts import text_name
from ppf.text.training import training_name

_TRAINER = (
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "log_every_n_steps",
    "deterministic",
)
_KNOWN = {
    "precision": ("bf16-mixed", "16-mixed", "32-true"),
    "gradient_clip_algorithm": ("norm", "value"),
}
"""Values of the section `trainer` that recovery supports."""
_UNREAD = {
    "policy": ("elastic", "ratios"),
    "path": ("elastic", "ratios", "sequential", "refit_windows"),
    "search": ("tune", "sequential", "refit_windows"),
}
"""Keys and sections that are not read with `policy=`, `path=` or `search=`."""
_OF_SEARCHES = ("text.windows.calibration", "text.windows.labelling")


def _start(cfg: DictConfig) -> Path:
    """The folder that the command reads."""
    if cfg.search:
        return agent_folder(cfg.search)
    return Path(cfg.path) if cfg.path else Path(cfg.policy).parent


def _check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    if sum(bool(cfg[key]) for key in ("policy", "path", "search")) != 1:
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (a folder that prune wrote)"
            " and search=FOLDER (of a search with mode=dynamic|chain)."
        )
    if str(cfg.trainer.precision).endswith("16-true"):
        raise PPFError(
            f"trainer.precision={cfg.trainer.precision} would round rotary frequencies, which must"
            " stay in float32: give trainer.precision=bf16-mixed or trainer.precision=32-true."
        )
    if others := [str(key) for key in cfg.trainer if key not in _TRAINER]:
        raise PPFError(
            f"trainer.{others[0]} cannot be set here: recovery.tokens and recovery.validate_every"
            f" say how long the training is, and fabric= where it runs; only {', '.join(_TRAINER)}"
            " can be set."
        )
    for key, known in _KNOWN.items():
        if (value := cfg.trainer.get(key)) is not None and value not in known:
            raise PPFError(f"trainer.{key}={value} is not supported: give {' or '.join(known)}.")
    check_read(cfg, overrides)
    if cfg.search:
        _check_adapters(cfg)
    else:
        _check_weights(cfg)


def _check_adapters(cfg: DictConfig) -> None:
    if cfg.dtype != "float32":
        raise PPFError("adapters are written in float32: leave dtype= out with search=.")
    if str(cfg.trainer.precision).startswith("16"):
        raise PPFError(
            "recovery with search= cannot compute in float16: give"
            " trainer.precision=bf16-mixed or trainer.precision=32-true."
        )
    if cfg.recovery.gradient_checkpointing:
        raise PPFError(
            "recovery with search= has no gradient checkpointing: give"
            " recovery.gradient_checkpointing=false."
        )
    agent = load_agent(cfg.search, cfg.trust_targets)
    highest = float(agent.knots[-1])
    if max(cfg.ratios) > highest:
        raise PPFError(
            f"ratios={list(cfg.ratios)} are too high: the agent of search={cfg.search} ends at"
            f" {highest:.3g}. Give ratios=[…] up to it."
        )
    check_out(cfg.out, agent.record, _start(cfg))


def _check_weights(cfg: DictConfig) -> None:
    on_cpu = cfg.fabric.accelerator == "cpu" or not torch.cuda.is_available()
    if str(cfg.trainer.precision).startswith("16") and on_cpu:
        raise PPFError(
            f"trainer.precision={cfg.trainer.precision} needs a GPU: give"
            " trainer.precision=bf16-mixed or trainer.precision=32-true."
        )
    record = read_policy(_file(cfg), cfg.trust_targets)
    check_out(cfg.out, record, _start(cfg))
    if record.get("recovered"):
        raise PPFError(
            f"{cfg.policy or cfg.path} is already a recovered model: give the folder that prune"
            " wrote, and a larger recovery.tokens."
        )
    if cfg.policy:
        refuse_recovered(record, cfg.policy)
    if cfg.recovery.gradient_checkpointing and "blockwise" in cfg.tune:
        raise PPFError(
            "tune=blockwise has no gradient checkpointing: give"
            " recovery.gradient_checkpointing=false."
        )


def check_read(cfg: DictConfig, given: Iterable[str]) -> None:
    """Raises PPFError if an override changes a key that is not read with what is recovered."""
    refuse_unread("recover", given, _OF_SEARCHES)
    if not cfg.report_test:
        refuse_unread("recover without report_test=true", given, ["text.windows.test"])
    for key, unread in _UNREAD.items():
        if cfg[key]:
            refuse_unread(f"recover with {key}=", given, unread)
    if not loss_names(cfg):
        refuse_unread(f"recover with tune={'+'.join(cfg.tune)}", given, ["loss"])


@command(_check)
def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Recovers a model; the metric is nats per token on the validation part, mean over ratios."""
    found = recover_dynamic(cfg, fabric) if cfg.search else recover(cfg, fabric)
    if any(score.recovered > score.pruned for score in found.scores):
        say(
            "Warning: The training raised the loss on the validation part: give a lower learning"
            " rate, or use the model as it was before."
        )
    if fabric.is_global_zero:
        _report(cfg, fabric, found)
    say(f"Written to {cfg.out}")
    return Outcome(fmean(score.recovered for score in found.scores), _rows(cfg, found))


def _rows(cfg: DictConfig, found: Recovered) -> list[dict[str, Any]]:
    """Rows for the table of a sweep, on the test part if it was measured; nats per token."""
    record = None if cfg.search else read_policy(_file(cfg), cfg.trust_targets)
    same = {
        "method": _method(record),
        "tune": "adapters" if cfg.search else "+".join(cfg.tune),
        "loss": "+".join(loss_names(cfg)),
        "mode": "dynamic" if cfg.search else "static",
        "tokens": found.tokens,
        "minutes": round(found.minutes, 2),
        "text": training_name(cfg.text),
        "part": "test" if found.test else "validation",
        "seed": cfg.seed,
    }
    names = ("recovered", "pruned", "dense")
    return [
        # The requested ratio: a sweep compares jobs by it.
        {"ratio": record["ratio"]["asked"] if record else score.ratio}
        | {f"nll_{name}": getattr(score, name) for name in names}
        | {"won_back": score.won_back, **same}
        for score in found.test or found.scores
    ]


def _method(record: Mapping[str, Any] | None) -> str:
    """Where the policy is from: "uniform" pruning or "PPF".

    Args:
        record: of the policy; None: a search for all ratios.
    """
    return "uniform" if record and record["kept"] == record["uniform"]["kept"] else "PPF"


def _file(cfg: DictConfig) -> str:
    """The policy.json of `cfg.policy` or `cfg.path`."""
    return f"{local_folder(cfg.path, 'path')}/policy.json" if cfg.path else str(cfg.policy)


def _report(cfg: DictConfig, fabric: Fabric, found: Recovered) -> None:
    """Writes the page and gives everything to the loggers."""
    folder = Path(cfg.paths.run)
    written = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    about = {
        **origin("recover"),
        "title": f"Recovery of {cfg.policy or cfg.path or cfg.search}",
        "text": text_name(cfg.text),
        "results": [score.record() for score in found.scores],
        "curve": found.curve,
        "settings": {
            "trained": "adapters of all ratios" if cfg.search else ", ".join(cfg.tune),
            "loss": " + ".join(loss_names(cfg)) or "distance from the dense residual stream",
            "tokens": f"{found.tokens:,}",
            "computed in": cfg.trainer.precision,
            "exported in": "float32" if cfg.search else cfg.dtype,
            "minutes": f"{found.minutes:.1f}",
            "validated on": f"windows of {cfg.text.window} tokens",
            "seed": cfg.seed,
        },
        "next_commands": _next_commands(cfg),
    }
    write_json(folder / "summary.json", written | about)
    log_used(cfg, fabric.loggers)
    log_made(Path(cfg.out), fabric.loggers)
    publish_recovery(folder, fabric.loggers)


def _next_commands(cfg: DictConfig) -> dict[str, str]:
    if cfg.search:
        ratio = cfg.ratios[len(cfg.ratios) // 2]
        given = ", ".join(map(repr, [str(cfg.out), *carried()]))
        ask = f"import ppf; ppf.DynamicModel.from_search({given}).set_ratio({ratio})"
        return {
            "Serve the model at any ratio": next_command("serve", f"search={quoted(cfg.out)}"),
            "Load it at one ratio": python_command(ask),
        }
    path, load = f"path={quoted(cfg.out)}", "AutoModelForCausalLM.from_pretrained"
    return {
        "Measure it on the test part": next_command("evaluate", path, "latency=true"),
        "Load it": f"{load}({str(cfg.out)!r}, trust_remote_code=True)",
    }
