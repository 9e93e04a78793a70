"""Pruning of a loaded model: statistics, importance, compensation, level bank, live pruning."""

from ppf.pruning.allocation import Allocation
from ppf.pruning.bank import Bank
from ppf.pruning.compensation import Compensation
from ppf.pruning.features import SiteFeatures
from ppf.pruning.importance import Importance
from ppf.pruning.live import LivePruner
from ppf.pruning.sensitivity import loss_changes, sensitivity
from ppf.pruning.statistics import Statistics
from ppf.pruning.traits import Traits
