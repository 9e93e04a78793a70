"""Agents: algorithms that search for the best policy at a pruning ratio, one in each file."""

from ppf.agents.base import Agent, Candidates, Objective, Polish, Report, Run

__all__ = ["Agent", "Candidates", "Objective", "Polish", "Report", "Run"]
