"""Texts: their sources, their parts, and windows of tokens."""

from ppf.text.parts import PartName, Text, build_text, default_text
