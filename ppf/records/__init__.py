"""Schemas of files that may come from strangers, and the function that reads such files."""

from ppf.records.reading import check, read
