"""ppf-recover: trains a pruned model to predict as the dense model does."""

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.cli.outcome import Outcome
from ppf.errors import PPFError
from ppf.llm.loading import local_folder
from ppf.progress import say
from ppf.report.scores import LogPerplexity
from ppf.stages.policy import read_policy
from ppf.stages.recover import recover


def _check(cfg: DictConfig) -> None:
    if (cfg.policy is None) == (cfg.path is None):
        raise PPFError(
            "give either policy=FILE (a policy.json) or path=FOLDER (a folder that prune.py wrote)."
        )
    file = f"{local_folder(cfg.path, 'path')}/policy.json" if cfg.path else cfg.policy
    read_policy(file, cfg.trust_targets)


@command(_check)
def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Recovers what `cfg.policy` or `cfg.path` names; the metric is nats per token."""
    found = recover(cfg, fabric)
    shares = "" if found.won_back is None else f"; {found.won_back:.1%} of the lost nats won back"
    say(
        f"Perplexity on the validation part: dense {LogPerplexity(found.dense)}, pruned"
        f" {LogPerplexity(found.pruned)}, recovered {LogPerplexity(found.recovered)}{shares}.\n"
        f"Model: {found.folder}"
    )
    scores = {name: getattr(found, name) for name in ("recovered", "pruned", "dense")}
    row = {f"{name}_ppl": LogPerplexity(nll).perplexity for name, nll in scores.items()}
    return Outcome(found.recovered, [row | {"won_back": found.won_back}])
