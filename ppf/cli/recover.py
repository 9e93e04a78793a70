"""ppf-recover: trains a pruned model to predict as the dense model does."""

from collections.abc import Sequence
from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.cli.app import command
from ppf.cli.outcome import Outcome
from ppf.errors import PPFError
from ppf.llm.loading import local_folder
from ppf.progress import say
from ppf.report.html import write_page
from ppf.report.origin import command_line, machine
from ppf.report.publish import Artifact, Published, log_artifact, publish
from ppf.report.recovery import recovery_metrics, recovery_page
from ppf.report.scores import LogPerplexity, RecoveryScore
from ppf.stages.policy import read_policy
from ppf.stages.recover import recover
from ppf.stages.recover_dynamic import recover_dynamic


def _check(cfg: DictConfig) -> None:
    if sum(cfg[key] is not None for key in ("policy", "path", "search")) != 1:
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (a folder that prune.py wrote)"
            " and search=FOLDER (of a run of search.py mode=dynamic)."
        )
    if cfg.search:
        agent = load_agent(cfg.search, cfg.trust_targets)
        for ratio in cfg.ratios:
            agent.policy(ratio)
        return
    file = f"{local_folder(cfg.path, 'path')}/policy.json" if cfg.path else cfg.policy
    read_policy(file, cfg.trust_targets)


@command(_check)
def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Recovers a model; the metric is nats per token on the validation part, a mean over ratios."""
    scores = recover_dynamic(cfg, fabric) if cfg.search else [recover(cfg, fabric)]
    for score in scores:
        say(_line(score))
    if fabric.is_global_zero:
        _report(cfg, fabric, scores)
    say(f"Written to {cfg.out}")
    return Outcome(
        sum(score.recovered for score in scores) / len(scores), [_row(score) for score in scores]
    )


def _line(score: RecoveryScore) -> str:
    won = score.won_back
    shares = "" if won is None else f"; {won:.1%} of the lost nats won back"
    dense, pruned, recovered = map(LogPerplexity, (score.dense, score.pruned, score.recovered))
    return (
        f"Ratio {score.ratio:.3f}, perplexity on the validation part: dense {dense}, pruned"
        f" {pruned}, recovered {recovered}{shares}."
    )


def _row(score: RecoveryScore) -> dict[str, float | None]:
    names = ("recovered", "pruned", "dense")
    row = {f"{name}_ppl": LogPerplexity(getattr(score, name)).perplexity for name in names}
    return {"ratio": score.ratio} | row | {"won_back": score.won_back}


def _report(cfg: DictConfig, fabric: Fabric, scores: Sequence[RecoveryScore]) -> None:
    """Writes the page and gives everything to the loggers."""
    file, out = Path(cfg.paths.run) / "report.html", Path(cfg.out)
    measured_on = (
        f"Measured on the validation part of {cfg.text.name}, in windows of {cfg.text.window}"
        " tokens."
    )
    page = recovery_page(
        scores,
        title=f"Recovery of {cfg.policy or cfg.path or cfg.search}",
        command=command_line("recover"),
        measured_on=measured_on,
        settings={
            "Trained": "adapters of all ratios" if cfg.search else ", ".join(cfg.tune),
            "Loss": " + ".join(cfg.loss),
            "Tokens": f"{cfg.recovery.tokens:,}",
            "Seed": str(cfg.seed),
        },
        machine=machine(),
        next_commands=_next_commands(cfg),
    )
    write_page(file, page)
    log_artifact(fabric.loggers, _used(cfg))
    made = Artifact([out], out.resolve().name, "model", by_reference=True)
    log_artifact(fabric.loggers, made)
    publish(fabric.loggers, Published.of(page, file, recovery_metrics(scores)))
    say(f"Report: {file}")


def _used(cfg: DictConfig) -> Artifact:
    """What the recovery reads, named as the command that made it has named it."""
    if cfg.policy:
        model = read_policy(cfg.policy, cfg.trust_targets)["model"]
        return Artifact([Path(cfg.policy)], f"{model}-policy", "policy", used=True)
    if cfg.search:
        model = load_agent(cfg.search, cfg.trust_targets).record["config"]["model"]["name"]
        files = sorted(Path(cfg.search).glob("agent.*"))
        return Artifact(files, f"{model}-agent", "agent", used=True)
    path = Path(cfg.path)
    return Artifact([path], path.resolve().name, "model", used=True, by_reference=True)


def _next_commands(cfg: DictConfig) -> dict[str, str]:
    if cfg.search:
        ask = f"import ppf; ppf.DynamicModel.from_search('{cfg.out}').set_ratio(0.37)"
        return {
            "Serve the model at any ratio": f"python serve.py search={cfg.out}",
            "Load it at one ratio": f'python -c "{ask}"',
            "Train longer": f"python recover.py search={cfg.search} recovery.tokens=5000000",
        }
    start = f"policy={cfg.policy}" if cfg.policy else f"path={cfg.path}"
    return {
        "Measure it on the test part": f"python evaluate.py path={cfg.out} latency=true",
        "Train longer": f"python recover.py {start} recovery.tokens=5000000",
        "Load it": f"AutoModelForCausalLM.from_pretrained('{cfg.out}', trust_remote_code=True)",
    }
