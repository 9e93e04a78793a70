"""From a dense model to a pruned one: statistics, order, compensation, bank, live pruning."""

from ppf.pruning.bank import Bank
from ppf.pruning.compensation import Compensation
from ppf.pruning.importance import Importance, order_atoms
from ppf.pruning.live import LivePruner
from ppf.pruning.statistics import Statistics, collect_statistics

__all__ = [
    "Bank",
    "Compensation",
    "Importance",
    "LivePruner",
    "Statistics",
    "collect_statistics",
    "order_atoms",
]
