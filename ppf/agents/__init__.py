"""Agents: from a pruning ratio and what is known of the sites to a policy; one algorithm a file."""

from ppf.agents.base import Agent, Candidates, Objective, Polish, Report, Run

__all__ = ["Agent", "Candidates", "Objective", "Polish", "Report", "Run"]
