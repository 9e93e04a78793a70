"""Measures a model: perplexity, zero-shot tasks, speed, memory and size."""

from ppf.evaluation.perplexity import pieces_loss, scored_pieces
from ppf.evaluation.size import parameters, weight_bytes
from ppf.evaluation.tasks import Tasks
