"""What counts as an evaluation."""

from pathlib import Path
from typing import Any

import torch

from ppf.artefacts import Artefacts
from ppf.labels.labelling import Labelling


class TwoRanks:
    """Rank 0 of two; what rank 1 sends is given."""

    is_global_zero, global_rank, world_size = True, 0, 2

    def __init__(self, other: object) -> None:
        self.other = other

    def broadcast(self, obj: object, src: int = 0) -> object:
        return self.other if src else obj


def test_evaluations_of_all_ranks_count() -> None:
    other = {(1, 2), (3, 4)}, {"selection": 5, ("screening", 1): 7}
    nothing: Any = None
    labelling = Labelling(
        nothing,
        torch.zeros(8, 10),
        torch.zeros(3, 10),
        nothing,
        "labels",
        Artefacts(Path(), TwoRanks(other)),
        {"selection": 5},
    )
    labelling.used.add((1, 2))
    labelling.add_other_ranks()
    assert labelling.used == {(1, 2), (3, 4)}
    assert labelling.token_passes == 2 * 80 + 5 + 7
