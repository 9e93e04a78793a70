"""Whether the least-squares bank of a model fits into memory."""

from ppf.llm import LanguageModel
from ppf.progress import say
from ppf.pruning import Compensation
from ppf.pruning.compensation import Bias
from ppf.space import Space

_GIB = 2**30


def bank_bytes(lm: LanguageModel, space: Space) -> int:
    """Memory of a least-squares bank: one consumer of its own for every level but the dense one."""
    consumers = {(c.layer, c.kind): c.consumer.weight for c in lm.couplings}
    return sum(
        consumers[site.layer, site.kind].nbytes * (site.units - 1) // 2 for site in space.sites
    )


def within(limit: float, wanted: Compensation, lm: LanguageModel, space: Space) -> Compensation:
    """`wanted`, or bias compensation where a least-squares bank would exceed `limit` GiB."""
    if not wanted.refits:
        return wanted
    needed = bank_bytes(lm, space) / _GIB
    if needed > limit:
        say(
            f"The least-squares bank takes {needed:.2f} GiB, more than bank.max_gib={limit}:"
            " pruning with bias compensation."
        )
        return Bias()
    say(f"Pruning with least-squares compensation: its bank takes {needed:.2f} GiB of memory.")
    return wanted
