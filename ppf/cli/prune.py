"""ppf-prune: writes a policy's model, for transformers or llama.cpp."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.cli.app import command
from ppf.cli.checks import refuse_unread
from ppf.errors import PPFError
from ppf.evaluation.size import weight_bytes
from ppf.export.files import refuse_foreign, refuse_overwriting, refuse_overwriting_dense
from ppf.llm.sources import local_folder
from ppf.policy_file import read_policy, refuse_recovered
from ppf.progress import say
from ppf.pruning.elastic import ADAPTERS
from ppf.records.agent import agent_folder
from ppf.stages.lineage import log_made, log_used
from ppf.stages.prune import convert, prune
from ppf.stages.prune_at import prune_at


def _check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    given = sum(bool(cfg[key]) for key in ("policy", "path", "search"))
    if given != 1 or bool(cfg.search) != (cfg.ratio is not None):
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (of prune or recover), and"
            " search=FOLDER (of a search with mode=dynamic|chain) with ratio=R, as in"
            " ratio=0.3."
        )
    if cfg.search:
        agent = load_agent(cfg.search, cfg.trust_targets)
        agent.policy(cfg.ratio)
        record = agent.record
    elif cfg.path:
        record = read_policy(f"{local_folder(cfg.path, 'path')}/policy.json", cfg.trust_targets)
        refuse_overwriting(cfg.out, cfg.path)
        if cfg.latency:
            raise PPFError("latency=true needs policy= or search=: leave it out with path=.")
    else:
        record = read_policy(cfg.policy, cfg.trust_targets)
        refuse_recovered(record, cfg.policy, " and export=gguf or export=decilm")
    check_read(cfg, overrides)
    refuse_foreign(cfg.out)
    refuse_overwriting_dense(cfg.out, record)


def check_read(cfg: DictConfig, given: Iterable[str]) -> None:
    """Raises PPFError if an override changes a key that is not read."""
    if cfg.path:
        refuse_unread("prune with path=", given, ["sequential", "refit_windows"])
    if cfg.search and (agent_folder(cfg.search) / ADAPTERS).is_file():
        refuse_unread("prune with adapters", given, ["sequential", "refit_windows"])
    if not cfg.latency:
        refuse_unread("prune without latency=true", given, ["speed"])


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes into the folder `cfg.out`."""
    if cfg.search:
        path, policy = prune_at(cfg, fabric)
    elif cfg.path:
        path, policy = convert(cfg)
    else:
        path, policy = prune(cfg, fabric, read_policy(cfg.policy, cfg.trust_targets))
    size = weight_bytes(path) if path.is_dir() else path.stat().st_size
    log_used(cfg, fabric.loggers)
    log_made(path, fabric.loggers, policy["ratio"])
    fabric.log_dict(_metrics(policy, size))
    say(f"{size / 2**20:.1f} MiB of weights in {path}")


def _metrics(policy: Mapping[str, Any], size: int) -> dict[str, float]:
    """For loggers, as in "one_shot/perplexity" and "pruned/decode_tokens_per_second/batch_1"."""
    exported = policy.get("exported") or {}
    scores = {"dense": exported.get("dense")} | exported.get("measured", {})
    found = {"ratio": policy["ratio"]["achieved"], "bytes": size}
    for name, score in scores.items():
        if score and score["perplexity"] is not None:
            found[f"{name}/perplexity"] = score["perplexity"]
    for name, speeds in (exported.get("speed") or {}).items():
        for speed in speeds:
            for phase in ("prefill", "decode"):
                found[f"{name}/{phase}_tokens_per_second/batch_{speed['batch']}"] = speed[phase]
    return found
