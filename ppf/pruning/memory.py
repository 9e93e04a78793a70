"""Checks whether the least-squares bank of a model fits into memory."""

from ppf.llm import LanguageModel
from ppf.progress import say
from ppf.pruning import Compensation
from ppf.pruning.bank import ready_gib
from ppf.pruning.compensation import Bias
from ppf.space import Space


def within(limit: float, wanted: Compensation, lm: LanguageModel, space: Space) -> Compensation:
    """Returns `wanted`, or bias compensation if a least-squares bank would exceed `limit` GiB."""
    if not wanted.refits:
        return wanted
    needed = ready_gib(lm, space)
    if needed > limit:
        say(
            f"The least-squares bank needs {needed:.2f} GiB, more than bank.max_gib={limit}:"
            " using bias compensation instead."
        )
        return Bias()
    say(f"Using least-squares compensation: its bank needs {needed:.2f} GiB of memory.")
    return wanted
