"""Pruning-policy search for language models.

`search`, `prune`, `recover` and `evaluate` do what the commands of these names do. `search` returns
a `SearchResult`. `load_agent` loads an agent that gives a policy for any ratio. A `DynamicModel` is
a model whose pruning ratio can be changed in milliseconds.

    import ppf

    found = ppf.search("smollm2_135m", ratio=0.3)                     # a model's name or folder
    found.kept, found.perplexity                                      # units kept at each site
    folder = ppf.prune(found, "pruned")                               # a smaller model
    better = ppf.recover(path=folder, out="recovered")                # trained after pruning
    ppf.evaluate(path=[folder, better])                               # their test perplexities

    agent = ppf.load_agent("FOLDER")                # of a search with mode="chain" or "dynamic"
    agent.policy(ratio=0.37)
    model = ppf.DynamicModel.from_search("FOLDER")  # one model in memory, at any ratio

Keyword arguments are the overrides of the commands: `labels={"count": 256}` stands for
`labels.count=256`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppf.agents.ratio_agent import load_agent
    from ppf.api import SearchResult, evaluate, prune, recover, search
    from ppf.runtime import DynamicModel

# Waiting threads sleep after some microseconds. Without this, two busy processes on one machine
# slow each other down several-fold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# transformers would download compiled kernels for GPUs, and compute with them.
os.environ.setdefault("USE_HUB_KERNELS", "NO")
# cuBLAS reads this at its first use; with it, the training of a predictor can be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__all__ = ["DynamicModel", "SearchResult", "evaluate", "load_agent", "prune", "recover", "search"]

_PLACES = {
    "DynamicModel": "ppf.runtime",
    "SearchResult": "ppf.api",
    "evaluate": "ppf.api",
    "load_agent": "ppf.agents.ratio_agent",
    "prune": "ppf.api",
    "recover": "ppf.api",
    "search": "ppf.api",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `import ppf` itself is quick."""
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("ppf-llm")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ppf' has no attribute '{name}'")


def __dir__() -> list[str]:
    """All names of the package, those that are not yet imported too: `help(ppf)` shows them."""
    return sorted({*globals(), *__all__})
