"""The policies of a search: an agent.json has one for any ratio, a policy.json has one in all."""

import math
from dataclasses import dataclass

from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.agent_file import AGENT, agent_folder
from ppf.agents.ratio_agent import RatioAgent, load_agent
from ppf.commands import invocation
from ppf.errors import PPFError
from ppf.labels.context import PruningContext
from ppf.policy_file import read_policy, refuse_recovered, refuse_types
from ppf.runtime.resident import resident

_ROUNDING = 1e-9  # of a percentage


@dataclass(frozen=True)
class SinglePolicy:
    """The one policy of a static search."""

    ratio: float
    kept: list[int]
    prediction: tuple[float, float] | None

    def policy(self, ratio: float) -> list[int]:
        """Units that each site keeps. Raises PPFError if the ratio is another one."""
        if not math.isclose(ratio, self.ratio):
            raise PPFError(
                f"the search found one policy, for ratio={self.ratio}, and none for {ratio}:"
                f" run `{invocation('search', 'mode=chain')}` to get an agent for all ratios."
            )
        return self.kept

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        """Predicted log-perplexity and its standard deviation, nats per token; None: unknown."""
        return self.prediction if math.isclose(ratio, self.ratio) else None


Policies = RatioAgent | SinglePolicy
"""Gives policies within milliseconds, without the predictor or the model."""


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
    record = read_policy(file, cfg.trust_targets)
    refuse_recovered(record, file)
    refuse_types(record, "DynamicModel (serve)")
    context = resident(cfg, fabric, record)
    ratio, predicted = record["ratio"]["asked"], record["predicted"]
    prediction = None if predicted["nll"] is None else (predicted["nll"], predicted["std"])
    found = SinglePolicy(ratio, context.model.space.policy(record["kept"]), prediction)
    return context, found, [0.0, ratio]
