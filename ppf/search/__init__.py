"""The modes of a search (`Static`, `Chain`, `Dynamic`), and what they work with."""

from ppf.search.chain import Chain
from ppf.search.curve import FoundAgent
from ppf.search.dynamic import Dynamic
from ppf.search.problem import AgentRuns, Problem, RealModel
from ppf.search.selection import selection_part
from ppf.search.static import Found, Static

__all__ = [
    "AgentRuns",
    "Chain",
    "Dynamic",
    "Found",
    "FoundAgent",
    "Problem",
    "RealModel",
    "Static",
    "selection_part",
]
