"""ppf-evaluate: test perplexity, size, speed and tasks, of a policy or of folders."""

from collections.abc import Sequence
from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.cli.checks import refuse_unread
from ppf.cli.lineage import folders, used
from ppf.errors import PPFError
from ppf.evaluation.results import Evaluation
from ppf.export.loading import check_format
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import local_folder
from ppf.overrides import quoted
from ppf.policy_file import read_policy, refuse_recovered
from ppf.progress import say
from ppf.records.run import Outcome
from ppf.report.evaluation import evaluation_metrics, evaluation_page, print_evaluation
from ppf.report.html import write_page
from ppf.report.origin import (
    command_line,
    command_with,
    gguf_command,
    machine,
    next_command,
)
from ppf.report.publish import Published, log_artifact, publish
from ppf.stages.evaluate import Procedure, evaluate_folders, evaluate_policy, write_results

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
    path = write_results(Path(cfg.paths.run), found)
    print_evaluation(found)
    _report(cfg, fabric, found, path.with_name("report.html"))
    say(f"Results: {path}\nReport:  {path.with_name('report.html')}")
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


def _report(cfg: DictConfig, fabric: Fabric, found: Evaluation, file: Path) -> None:
    """Writes the page and gives everything to the loggers."""
    names = ", ".join(result.name for result in found.results)
    own = ("sequential", "refit_windows") if cfg.policy else ()
    settings = (*own, "window", "stride", "seed")
    model = read_policy(cfg.policy, cfg.trust_targets)["model"] if cfg.policy else names
    dtype = dtype_name(resolve_dtype(cfg.dtype, fabric.device))
    page = evaluation_page(
        found,
        title=f"Evaluation of {names}",
        command=command_line("evaluate"),
        settings={"model": model, "dtype": dtype}
        | {name: str(cfg[name]) for name in settings if cfg[name] is not None},
        machine=machine(),
        next_commands=_next_commands(cfg),
    )
    write_page(file, page)
    for artifact in used(cfg):
        log_artifact(fabric.loggers, artifact)
    publish(fabric.loggers, Published.of(page, file, evaluation_metrics(found)))


def _next_commands(cfg: DictConfig) -> dict[str, str]:
    measure_more = command_with(
        "evaluate", {"tasks": "[arc_easy]"} if cfg.latency else {"latency": "true"}
    )
    if cfg.policy:
        given = f"policy={quoted(cfg.policy)}"
        if read_policy(cfg.policy, cfg.trust_targets).get("types"):
            smaller = gguf_command(given)
        else:
            smaller = {"Write the smaller model": next_command("prune", given, "out=pruned")}
        return smaller | {"Measure more": measure_more}
    last = folders(cfg)[-1]
    if not (Path(last) / "policy.json").is_file():  # not one of PPF's folders
        return {"Measure more": measure_more}
    load = f"AutoModelForCausalLM.from_pretrained({str(last)!r}, trust_remote_code=True)"
    return {"Measure more": measure_more, "Load it": load}
