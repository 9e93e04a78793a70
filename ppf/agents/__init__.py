"""Agents: algorithms that search for the best policy at a pruning ratio, one in each file."""

from ppf.agents.base import THREADS, Agent, Candidates, Objective, Polish, Report, Run
from ppf.agents.learner import Learner
