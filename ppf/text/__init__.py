"""Texts: their sources, their parts, and windows of tokens."""

from ppf.text.identity import warn_of_shared_documents
from ppf.text.parts import PartName, Text, build_text
