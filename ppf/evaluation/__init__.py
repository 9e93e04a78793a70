"""Measures a model: perplexity, zero-shot tasks, speed, memory and size."""

from ppf.evaluation.answers import answer
from ppf.evaluation.perplexity import LogPerplexity, Mean, scored_windows, window_losses
from ppf.evaluation.size import parameters, weight_bytes
from ppf.evaluation.tasks import Tasks
