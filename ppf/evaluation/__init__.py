"""Measures a model: perplexity, zero-shot tasks, speed, memory and size."""
