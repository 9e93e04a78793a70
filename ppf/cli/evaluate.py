"""ppf-evaluate: perplexity on the test part and size, of a policy or of a folder."""

from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.errors import PPFError
from ppf.progress import say
from ppf.report.loggers import log_table
from ppf.report.tables import evaluation_table, print_evaluation
from ppf.stages.evaluate import evaluate_folder, evaluate_policy, write_results
from ppf.stages.policy import read_policy


@command("evaluate")
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Measures what `cfg.policy` or `cfg.path` names."""
    if (cfg.policy is None) == (cfg.path is None):
        raise PPFError(
            "give either policy=FILE (a policy.json) or path=FOLDER (a Hugging Face folder)."
        )
    if cfg.policy:
        found = evaluate_policy(cfg, fabric, read_policy(cfg.policy))
    else:
        found = evaluate_folder(cfg, fabric)
    path = write_results(Path(cfg.paths.run), found)
    print_evaluation(found)
    log_table(fabric.loggers, "evaluation", *evaluation_table(found))
    say(f"Results: {path}")


if __name__ == "__main__":
    main()
