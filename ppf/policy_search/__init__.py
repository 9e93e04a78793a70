"""The modes of a search (`Static`, `Chain`, `Dynamic`), and what they work with."""

from ppf.policy_search.chain import Chain
from ppf.policy_search.curve import AgentResult
from ppf.policy_search.dynamic import Dynamic
from ppf.policy_search.problem import AgentRuns, Problem, RealModel
from ppf.policy_search.static import PolicyResult, Static
