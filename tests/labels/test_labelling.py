"""What counts as an evaluation."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch

from ppf.artefacts import Artefacts
from ppf.labels.labelling import Labelling


def test_evaluations_of_all_ranks_count() -> None:
    other = {(1, 2), (3, 4)}, {"selection": 5, ("screening", 1): 7}
    nothing: Any = None
    ranks: Any = Mock(world_size=2, broadcast=lambda mine, src: other if src else mine)
    windows, artefacts = torch.zeros(11, 10).split((8, 3)), Artefacts(Path(), ranks)
    labelling = Labelling(nothing, *windows, nothing, "labels", artefacts, {"selection": 5})
    labelling.used.add((1, 2))
    labelling.add_other_ranks()
    assert labelling.used == {(1, 2), (3, 4)}
    assert labelling.token_passes == 2 * 80 + 5 + 7
