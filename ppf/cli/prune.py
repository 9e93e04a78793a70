"""ppf-prune: writes a policy's model, for transformers or llama.cpp."""

from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.cli.app import command
from ppf.cli.lineage import made, used
from ppf.context.policy import read_policy
from ppf.errors import PPFError
from ppf.evaluation.size import weight_bytes
from ppf.llm.loading import local_folder
from ppf.progress import say
from ppf.report.publish import log_artifact
from ppf.stages.prune import convert, prune
from ppf.stages.prune_at import prune_at


def _check(cfg: DictConfig) -> None:
    given = sum(cfg[key] is not None for key in ("policy", "path", "search"))
    if given != 1 or (cfg.search is None) != (cfg.ratio is None):
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (of prune.py or recover.py), and"
            " search=FOLDER (of a run of search.py mode=dynamic) with ratio=R, as in ratio=0.3."
        )
    if cfg.search:
        load_agent(cfg.search, cfg.trust_targets).policy(cfg.ratio)
    elif cfg.path:
        read_policy(f"{local_folder(cfg.path, 'path')}/policy.json", cfg.trust_targets)
    elif read_policy(cfg.policy, cfg.trust_targets).get("recovered"):
        raise PPFError(
            f"policy={cfg.policy} belongs to a recovered model, and pruning the dense model again"
            f" would lose its weights: give path={Path(cfg.policy).parent} and export=gguf or"
            " export=decilm."
        )


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes into the folder `cfg.out`."""
    if cfg.search:
        path, policy = prune_at(cfg, fabric)
    elif cfg.path:
        path, policy = convert(cfg)
    else:
        policy = read_policy(cfg.policy, cfg.trust_targets)
        path = prune(cfg, fabric, policy)
    size = weight_bytes(path) if path.is_dir() else path.stat().st_size
    for artifact in (*used(cfg), made(path, policy["ratio"])):
        log_artifact(fabric.loggers, artifact)
    say(f"{size / 2**20:.1f} MiB of weights in {path}")
