"""Pruning-policy search for language models."""
