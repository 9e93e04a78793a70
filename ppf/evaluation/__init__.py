"""Measures a model: perplexity, zero-shot tasks, speed, memory and size."""

from ppf.evaluation.perplexity import Piece, pieces_loss, sliding
from ppf.evaluation.results import Evaluation, ModelResult
from ppf.evaluation.size import parameters, weight_bytes
from ppf.evaluation.tasks import Tasks

__all__ = [
    "Evaluation",
    "ModelResult",
    "Piece",
    "Tasks",
    "parameters",
    "pieces_loss",
    "sliding",
    "weight_bytes",
]
