"""The one error type that a command turns into a sentence and exit code 1."""


class PPFError(Exception):
    """What is wrong, and which override mends it, in one sentence."""
