"""Prunable sites, policies and budgets, as tensors; independent of any model."""

from ppf.space.budget import project, uniform
from ppf.space.sites import Prunable, Site, Space, build_space, check_ratio, new_policies
from ppf.space.steps import SteppedSpace
