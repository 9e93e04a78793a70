"""How many policies and gradients a command will measure, found from its config alone."""

import math

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.predictor.base import is_exact, needs_labels, unfitted
from ppf.predictor.expected import ExpectedLoss
from ppf.pruning.costs import Bytes
from ppf.search.experts import measured_experts, searched_ratios

_DRAWN = 128  # policies that are labelled for a predictor that needs labels
MANY = 1024  # windows that are assumed where a text gives all it has
_SPARING = 2  # starts of evolution: for each kind of site the policy that prunes it least


def evaluations(cfg: DictConfig) -> int:
    """Largest number of policies that are measured: drawn ones, and those of a search.

    Policies that are measured on fewer windows (`Oracle.screening`) count as a share of one.
    """
    before = drawn_labels(cfg)
    if not isinstance(cfg.get("search"), DictConfig):  # in other commands the key names a folder
        return before + cfg.get("test_policies", 0)
    if cfg.mode == "dynamic":
        return before + _of_dynamic_search(cfg)
    if cfg.mode == "chain":
        rule = _is_rule(cfg)
        each = 1 if rule else evaluations_of_agent(cfg) or _proposals(cfg)
        rules = 0 if rule else _other_rules(cfg)  # the first search measures them
        moved = cfg.dynamic.knots - 1  # starts of later searches, which only an oracle measures
        more = moved if evaluations_of_agent(cfg) else 0
        known = searched_ratios(cfg.dynamic.train, cfg.dynamic.knots).tolist()
        reported = [ratio for ratio in cfg.ratios if ratio not in known]
        return before + cfg.dynamic.knots * (1 + each) + rules + more + 2 * len(reported)
    if _is_rule(cfg):
        return before + 2  # its policy and uniform pruning
    rules = 1 + _other_rules(cfg)
    # Proposals of an agent that measures policies are among these.
    return before + rules + (evaluations_of_agent(cfg) or _proposals(cfg))


def drawn_labels(cfg: DictConfig) -> int:
    """Policies that are drawn and labelled before a search, the dense one included."""
    if cfg.labels.count is not None:
        return int(cfg.labels.count)
    predictor = cfg.get("predictor")
    return _DRAWN if predictor and needs_labels(unfitted(predictor)) else 1


def evaluations_of_agent(cfg: DictConfig) -> int | None:
    """Policies that the agent itself measures in all rounds, with predictor=oracle.

    Returns:
        0: their number is not known in advance; None: the agent measures none.
    """
    agent = cfg.get("agent")
    if agent is None or not is_exact(unfitted(cfg.predictor)):
        return None
    if agent.get("polish"):
        return 0
    if "generations" not in agent:
        return _rounds(cfg) * agent.get("evaluations", 0)
    children, whole = agent.children, cfg.text.windows.labelling or MANY
    share = 0.0
    for step in cfg.predictor.get("screening", []):
        share += children * step["windows"] / whole
        children = min(children, step["keep"])
    starts = _SPARING + bool(cfg.search.start)
    return starts + _rounds(cfg) * math.ceil(agent.generations * (share + children))


def counts_bytes(budget: DictConfig) -> bool:
    """Whether a search with this budget may quantise weights."""
    return isinstance(instantiate(budget.cost), Bytes)


def gradient_sets(cfg: DictConfig) -> tuple[int, int]:
    """Windows in a set for gradients at the best policies, and the largest number of sets."""
    if cfg.get("mode") not in ("static", "chain") or counts_bytes(cfg.budget):
        return 0, 0
    predictor = unfitted(cfg.predictor)
    if not isinstance(predictor, ExpectedLoss) or not predictor.windows:
        return 0, 0
    searches = cfg.dynamic.knots if cfg.mode == "chain" else 1
    fits = _rounds(cfg) * searches - 1  # a chain also fits between two searches
    if not fits:
        return predictor.windows, 0
    renewal, policies = predictor.renewal, _of_round(cfg)
    each = math.ceil(policies / renewal)
    measured = _other_rules(cfg) + policies + _of_start(cfg)
    first = 1 + measured // renewal  # at worst the first row is the best
    # Each later search of a chain measures uniform pruning too.
    return predictor.windows, first + (fits - 1) * each + searches - 1


def reestimates(cfg: DictConfig) -> bool:
    """Whether a command re-estimates the compensation of policies, as its key `sequential` says."""
    return bool(cfg.get("sequential") and cfg.get("report_test", True))


def _is_rule(cfg: DictConfig) -> bool:
    return bool(instantiate(cfg.agent).role.decides)


def _rounds(cfg: DictConfig) -> int:
    """Rounds of a static search, if none of them ends it early."""
    if _is_rule(cfg):
        return 1
    before_last = max(cfg.search.label_budget - cfg.search.top_k, 0)  # which has top_k reserved
    return min(cfg.search.rounds, 1 + math.ceil(before_last / _of_round(cfg)))


def _of_round(cfg: DictConfig) -> int:
    return cfg.search.top_k * (1 + cfg.search.neighbours)


def _proposals(cfg: DictConfig) -> int:
    """Largest number of proposals that all rounds measure; the last one measures no neighbours."""
    search = cfg.search
    rounds = (search.rounds - 1) * _of_round(cfg) + search.top_k
    return min(search.label_budget, rounds + _of_start(cfg))


def _other_rules(cfg: DictConfig) -> int:
    """Allocation rules that a search measures besides uniform pruning."""
    return len(set(cfg.rules) - {"uniform"})


def _of_start(cfg: DictConfig) -> int:
    """Policies that the first round measures because of `search.start`: it and its neighbours."""
    search = cfg.search
    return 1 + search.neighbours * (search.rounds > 1) if search.start else 0


def _of_dynamic_search(cfg: DictConfig) -> int:
    """Experts that are measured, and for each ratio the agent's policy and uniform pruning."""
    count, stride = cfg.dynamic.knots, cfg.dynamic.stride
    rounds = [measured_experts(number, stride, count) for number in range(cfg.search.rounds)]
    return sum(len(range(count)[own]) for own in rounds) + 2 * len(cfg.ratios)
