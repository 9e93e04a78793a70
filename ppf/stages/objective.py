"""From the config to what agents are given."""

from pathlib import Path

from hydra.utils import instantiate

from ppf.agents import Agent, Objective
from ppf.agents.checkpoint import Checkpoint
from ppf.agents.rule import Rule
from ppf.search import TrustRegion
from ppf.stages.artefacts import plain, signature
from ppf.stages.budgets import priced
from ppf.stages.prepare import Prepared
from ppf.stages.train import Trained


def objective_of(
    ready: Prepared,
    trained: Trained,
    ratio: float,
    agent: Agent,
    interval: tuple[float, float] | None = None,
    radius: float | None = None,
) -> Objective:
    """The config's objective at a ratio; a rule is measured alone, without the other rules.

    Args:
        interval: of ratios to learn; None: the one ratio.
        radius: of the trust region; None: the config's.
    """
    cfg = ready.cfg
    return Objective(
        space=priced(ready, cfg.budget),
        predictor=trained.fitted.predictor,
        ratio=ratio,
        interval=interval or (ratio, ratio),
        spread_penalty=cfg.search.spread_penalty,
        trust_region=radius or cfg.search.trust_region,
        evidence=ready.evidence,
        rules={} if isinstance(agent, Rule) else instantiate(cfg.rules),
        device=ready.fabric.device,
    )


def region_of(ready: Prepared) -> TrustRegion:
    """The config's trust region, as a search starts with it."""
    cfg = ready.cfg.search
    return TrustRegion(cfg.trust_region, cfg.widen, cfg.agreement, cfg.tolerance, cfg.gain)


def checkpoint_of(ready: Prepared, trained: Trained, seed: int) -> Checkpoint:
    """Where a training on this predictor is kept, named by all that determines it."""
    cfg = ready.cfg
    groups = [plain(cfg[group]) for group in ("agent", "budget", "rules", "search", "dynamic")]
    processes = ready.fabric.world_size
    name = signature(trained.signature, groups, cfg.mode, cfg.ratio, seed, processes)
    folder = Path(cfg.paths.artefacts) / "training"
    return Checkpoint(folder / name, cfg.search.checkpoint_every)
