"""The commands: each composes a config, seeds, calls its stage, reports, returns."""

import sys
from types import TracebackType


def _print_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints one line after Ctrl+C, also during imports; not if Python code calls PPF."""
    if issubclass(kind, KeyboardInterrupt) and "ppf.cli.start" in sys.modules:
        print("Interrupted: the same command resumes.", file=sys.stderr)
        sys.exit(130)
    _others(kind, error, trace)


_others = sys.excepthook
sys.excepthook = _print_error
