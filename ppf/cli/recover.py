"""ppf-recover: trains a pruned model to predict as the dense model does."""

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.cli.app import command
from ppf.cli.outcome import Outcome
from ppf.errors import PPFError
from ppf.llm.loading import local_folder
from ppf.progress import say
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
