"""Pruning of a loaded model: statistics, importance, compensation, level bank, live pruning."""

from ppf.pruning.allocation import Allocation
from ppf.pruning.bank import Bank
from ppf.pruning.compensation import Compensation
from ppf.pruning.features import SiteFeatures
from ppf.pruning.importance import (
    Importance,
    order_atoms,
    retained_importance,
    score_atoms,
)
from ppf.pruning.live import LivePruner
from ppf.pruning.sensitivity import loss_changes, sensitivity
from ppf.pruning.statistics import Statistics, collect_statistics
from ppf.pruning.traits import Traits, collect_traits

__all__ = [
    "Allocation",
    "Bank",
    "Compensation",
    "SiteFeatures",
    "Importance",
    "LivePruner",
    "Statistics",
    "Traits",
    "collect_statistics",
    "collect_traits",
    "order_atoms",
    "retained_importance",
    "score_atoms",
    "loss_changes",
    "sensitivity",
]
