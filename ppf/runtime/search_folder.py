"""Reads the folder of a search: agent.json of a dynamic search, policy.json of a static one."""

import math

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import load_agent
from ppf.context import PruningContext
from ppf.errors import PPFError
from ppf.policy_file import read_policy, refuse_recovered, refuse_types
from ppf.records.agent import AGENT, agent_folder
from ppf.runtime.policies import FoundPolicy, Policies
from ppf.runtime.resident import resident

_ROUNDING = 1e-9  # of a percentage


def read_search(cfg: DictConfig, fabric: Fabric) -> tuple[PruningContext, Policies, list[float]]:
    """The dense model of the search in `cfg.search`, its policies, and the ratios to offer.

    Raises:
        PPFError: there is no search, the model has changed since the search, or the policy
            quantises weights or belongs to a recovered model.
    """
    folder = agent_folder(cfg.search)
    if (folder / AGENT).is_file():
        agent = load_agent(folder, cfg.trust_targets)
        highest = math.floor(100 * float(agent.knots[-1]) + _ROUNDING)
        context = resident(cfg, fabric, agent.record)
        agent.check_sites(context.model.pruner.space)
        return context, agent, [percent / 100 for percent in range(highest + 1)]
    file = folder / "policy.json"
    if not file.is_file():
        raise PPFError(
            f"search={cfg.search} contains neither agent.json nor policy.json:"
            " give the folder of a search."
        )
    record = read_policy(file, cfg.trust_targets)
    refuse_recovered(record, file)
    refuse_types(record, "DynamicModel (serve)")
    context = resident(cfg, fabric, record)
    ratio, predicted = record["ratio"]["asked"], record["predicted"]
    prediction = None if predicted["nll"] is None else (predicted["nll"], predicted["std"])
    found = FoundPolicy(ratio, context.model.space.policy(record["kept"]), prediction)
    return context, found, [0.0, ratio]
