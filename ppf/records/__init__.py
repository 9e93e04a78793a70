"""Files that may come from strangers: what they may hold, and the one function that reads them."""

from ppf.records.reading import check, read

__all__ = ["check", "read"]
