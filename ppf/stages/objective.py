"""From the config to what agents are given."""

from pathlib import Path

from hydra.utils import instantiate

from ppf.agents import Agent, Objective
from ppf.agents.checkpoint import Checkpoint
from ppf.agents.rule import Rule
from ppf.artefacts import signature
from ppf.policy_search import TrustRegion
from ppf.stages.budgets import priced
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import plain
from ppf.stages.train import Trained


def objective_of(
    context: PruningContext,
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
    cfg = context.cfg
    return Objective(
        space=priced(context, cfg.budget),
        predictor=trained.predictor,
        ratio=ratio,
        interval=interval or (ratio, ratio),
        spread_penalty=cfg.search.spread_penalty,
        trust_region=radius or cfg.search.trust_region,
        features=context.features,
        rules={} if isinstance(agent, Rule) else instantiate(cfg.rules),
        device=context.fabric.device,
    )


def region_of(context: PruningContext) -> TrustRegion:
    """The config's trust region, as a search starts with it."""
    cfg = context.cfg.search
    return TrustRegion(cfg.trust_region, cfg.widen, cfg.agreement, cfg.tolerance, cfg.gain)


def checkpoint_of(context: PruningContext, trained: Trained, seed: int) -> Checkpoint:
    """Where a training on this predictor is kept, named by all that determines it."""
    cfg = context.cfg
    groups = [plain(cfg[group]) for group in ("agent", "budget", "rules", "search", "dynamic")]
    processes = context.fabric.world_size
    name = signature("training", trained.signature, groups, cfg.mode, cfg.ratio, seed, processes)
    folder = Path(cfg.paths.artefacts) / "training"
    return Checkpoint(folder / name, cfg.search.checkpoint_every)
