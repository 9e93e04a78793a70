import pytest
import torch
from torch import Tensor

from ppf.llm import LanguageModel
from ppf.pruning import Statistics
from tests.checkpoints import random_windows
from tests.observing import collect_statistics


@pytest.fixture
def statistics(lm: LanguageModel) -> Statistics:
    return collect_statistics(lm, random_windows())


def error_without(weight: Tensor, gram: Tensor, gone: list[int], size: int) -> float:
    """Squared output error after these atoms are removed and the rest is refitted."""
    left = torch.ones(len(gram), dtype=torch.bool)
    for atom in gone:
        left[atom * size : (atom + 1) * size] = False
    solution = torch.linalg.solve(gram[left][:, left], gram[left] @ weight.T)
    difference = weight.T.clone()
    difference[left] -= solution
    return float((difference * (gram @ difference)).sum())
