"""ppf-evaluate: test perplexity, size, speed and tasks, of a policy or of folders."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import write_json
from ppf.cli.app import command
from ppf.cli.checks import refuse_unread
from ppf.errors import PPFError
from ppf.export.loading import check_format
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import local_folder
from ppf.overrides import quoted
from ppf.policy_file import read_policy, refuse_recovered
from ppf.progress import say
from ppf.records.run import Outcome
from ppf.report.evaluation import publish_evaluation
from ppf.report.origin import gguf_command, next_command, origin
from ppf.stages.evaluate import Procedure, evaluate_folders, evaluate_policy
from ppf.stages.lineage import folders, log_used

_UNREAD = {"policy": ["trust_remote_code"], "path": ["sequential", "refit_windows", "baselines"]}
"""Keys that are not read with `policy=` or `path=`."""
_OF_OTHERS = ("text.windows.calibration", "text.windows.labelling", "text.training")


def _check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    if bool(cfg.policy) == bool(folders(cfg)):
        raise PPFError(
            "give either policy=FILE (a policy.json) or path=FOLDER (a Hugging Face folder)."
        )
    if cfg.window and cfg.stride and cfg.stride > cfg.window:
        raise PPFError(
            f"stride={cfg.stride} would skip tokens between windows of {cfg.window}: give at most"
            f" stride={cfg.window}."
        )
    if cfg.policy:
        refuse_recovered(read_policy(cfg.policy, cfg.trust_targets), cfg.policy)
    for path in folders(cfg):
        check_format(Path(local_folder(path, "path")))
    check_read(cfg, overrides)


def check_read(cfg: DictConfig, given: Sequence[str]) -> None:
    """Raises PPFError if an override changes a key that is not read."""
    source = "policy" if cfg.policy else "path"
    refuse_unread("evaluate", given, _OF_OTHERS)
    refuse_unread(f"evaluate with {source}=", given, _UNREAD[source])
    if cfg.window or cfg.stride:
        refuse_unread("evaluate with window= or stride=", given, ["text.windows.test"])
    if cfg.window:
        refuse_unread("evaluate with window=", given, ["text.window"])
    if not cfg.tasks:
        refuse_unread("evaluate without tasks=", given, ["limit"])
    if not cfg.latency:
        refuse_unread("evaluate without latency=true", given, ["speed"])


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Measures what `cfg.policy` or `cfg.path` names."""
    procedure = Procedure.of(cfg)
    if cfg.policy:
        policy = read_policy(cfg.policy, cfg.trust_targets)
        found = evaluate_policy(cfg, fabric, procedure, policy)
        if policy.get("types"):
            say(
                "The policy quantises weights: the ratio is the share of bytes that export=gguf"
                " saves, compared with 16 bits."
            )
    else:
        found = evaluate_folders(cfg, fabric, procedure, folders(cfg))
    folder = Path(cfg.paths.run)
    write_json(folder / "evaluation.json", asdict(found) | _about(cfg, fabric))
    log_used(cfg, fabric.loggers)
    publish_evaluation(folder, fabric.loggers)
    figures = [
        {
            "ratio": r.ratio if r.asked is None else r.asked,  # a sweep compares models by it
            "test_ppl": r.perplexity,
            "parameters": r.parameters,
            "model": r.name,
        }
        for r in found.results
    ]
    return Outcome(found.results[-1].nll, figures)


def _about(cfg: DictConfig, fabric: Fabric) -> dict[str, Any]:
    """What the report says about the evaluation beside its results."""
    own = ("sequential", "refit_windows") if cfg.policy else ()
    names = (*own, "window", "stride", "seed")
    settings = {name: cfg[name] for name in names if cfg[name] is not None}
    settings["dtype"] = dtype_name(resolve_dtype(cfg.dtype, fabric.device))
    return {**origin("evaluate"), "settings": settings, "next_commands": _next_commands(cfg)}


def _next_commands(cfg: DictConfig) -> dict[str, str]:
    if cfg.policy:
        given = f"policy={quoted(cfg.policy)}"
        if read_policy(cfg.policy, cfg.trust_targets).get("types"):
            return gguf_command(given)
        return {"Write the smaller model": next_command("prune", given, "out=pruned")}
    last = folders(cfg)[-1]
    if not (Path(last) / "policy.json").is_file():  # not one of PPF's folders
        return {}
    load = f"AutoModelForCausalLM.from_pretrained({str(last)!r}, trust_remote_code=True)"
    return {"Load it": load}
