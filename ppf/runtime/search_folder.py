"""Reads the folder of a search: agent.json of a dynamic search, policy.json of a static one."""

import math
from collections.abc import Mapping
from typing import Any

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.context import PruningContext
from ppf.errors import PPFError
from ppf.policy_file import read_policy, refuse_recovered, refuse_types
from ppf.records.agent import AGENT, agent_folder
from ppf.runtime.policies import FoundPolicy, Policies
from ppf.runtime.resident import resident
from ppf.space import Space

Answers = tuple[Policies, list[float]]
"""The policies for ratios, and the ratios to offer."""


def read_search(cfg: DictConfig, fabric: Fabric) -> tuple[PruningContext, Answers]:
    """The dense model of the search in `cfg.search`, and its policies.

    Raises:
        PPFError: there is no search, the model has changed since the search, or the policy
            quantises weights or belongs to a recovered model.
    """
    check_search(cfg)
    folder = agent_folder(cfg.search)
    if (folder / AGENT).is_file():
        agent = load_agent(folder, cfg.trust_targets)
        highest = math.floor(100 * float(agent.knots[-1]) + _ROUNDING)
        context = resident(cfg, fabric, agent.record)
        agent.check_sites(context.model.pruner.space)
        return context, (agent, [percent / 100 for percent in range(highest + 1)])
    record = read_policy(folder / "policy.json", cfg.trust_targets)
    try:
        refuse_recovered(record, folder / "policy.json")
    except PPFError:
        raise PPFError(
            f"search={folder} is a recovered model, which has one ratio only: load it with"
            " AutoModelForCausalLM.from_pretrained, or give the folder of a search for all ratios."
        ) from None
    refuse_types(record, "DynamicModel (serve)")
    context = resident(cfg, fabric, record)
    return context, (_found(record, context.model.space), [0.0, record["ratio"]["asked"]])


def check_search(cfg: DictConfig) -> None:
    """Raises PPFError if `cfg.search` is not the folder of a search."""
    folder = agent_folder(cfg.search)
    if not any((folder / name).is_file() for name in (AGENT, "policy.json")):
        raise PPFError(
            f"search={cfg.search} contains neither agent.json nor policy.json:"
            " give the folder of a search."
        )


def _found(record: Mapping[str, Any], space: Space) -> FoundPolicy:
    nll, std = record["predicted"]["nll"], record["predicted"]["std"]
    prediction = None if nll is None else (nll, std)
    return FoundPolicy(record["ratio"]["asked"], space.policy(record["kept"]), prediction)


_ROUNDING = 1e-9  # of a percentage
