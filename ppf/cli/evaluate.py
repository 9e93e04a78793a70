"""ppf-evaluate: test perplexity, size, speed and tasks, of a policy or of folders."""

from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.errors import PPFError
from ppf.llm.loading import local_folder
from ppf.progress import say
from ppf.report.evaluation import evaluation_tables, print_evaluation
from ppf.report.loggers import log_table
from ppf.stages.evaluate import Procedure, evaluate_folders, evaluate_policy, write_results
from ppf.stages.policy import read_policy


def _check(cfg: DictConfig) -> None:
    if (cfg.policy is None) == (cfg.path is None):
        raise PPFError(
            "give either policy=FILE (a policy.json) or path=FOLDER (a Hugging Face folder)."
        )
    if cfg.policy:
        read_policy(cfg.policy, cfg.trust_targets)
    for path in _paths(cfg):
        local_folder(path, "path")


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> float | None:
    """Measures what `cfg.policy` or `cfg.path` names."""
    procedure = Procedure.of(cfg)
    if cfg.policy:
        policy = read_policy(cfg.policy, cfg.trust_targets)
        found = evaluate_policy(cfg, fabric, procedure, policy)
    else:
        found = evaluate_folders(cfg, fabric, procedure, _paths(cfg))
    path = write_results(Path(cfg.paths.run), found)
    print_evaluation(found)
    for name, table in evaluation_tables(found).items():
        log_table(fabric.loggers, name, *table)
    say(f"Results: {path}")
    return found.results[-1].nll


def _paths(cfg: DictConfig) -> list[str]:
    return [cfg.path] if isinstance(cfg.path, str) else list(cfg.path or [])
