"""One model in memory that can be pruned to any ratio."""

from ppf.runtime.batch import Batch
from ppf.runtime.model import DynamicModel
from ppf.runtime.policies import FoundPolicy, Policies, UniformPolicies

__all__ = ["Batch", "DynamicModel", "FoundPolicy", "Policies", "UniformPolicies"]
