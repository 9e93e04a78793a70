"""The one error type that a command turns into a sentence and exit code 1."""


class PPFError(Exception):
    """What is wrong, and which override mends it, in one sentence."""


def reason(error: Exception) -> str:
    """An error's type and first line, to be quoted inside a sentence."""
    return f"{type(error).__name__}: {error}".split("\n")[0].rstrip(".:")
