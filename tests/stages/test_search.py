"""A search needs neither a model nor a config file: only what its inputs list."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ppf.labels.table import Labels
from ppf.progress import Stopwatch
from ppf.space import uniform
from ppf.stages.search import search
from ppf.stages.search_inputs import SearchInputs
from ppf.stages.train import Trained
from tests.agents.synthetic import Quadratic, agent, features, layered, one_process

RATIO = 0.3
SETTINGS = {
    "rounds": 3,
    "top_k": 2,
    "neighbours": 1,
    "label_budget": 48,
    "trust_region": 0.5,
    "widen": 1.0,
    "agreement": 1.1,  # never reached: no search ends early
    "tolerance": 0.02,
    "gain": 0.003,
    "spread_penalty": 1.0,
    "checkpoint_every": 5,
}


@pytest.mark.parametrize(("label_budget", "rounds"), [(48, 3), (6, 2)])
def test_rounds_measure_and_teach_until_the_label_budget_is_spent(
    tmp_path: Path, label_budget: int, rounds: int
) -> None:
    space, rows = layered(3), []
    truth = Quadratic(space, RATIO)

    def train(labels: Labels) -> Trained:
        rows.append(len(labels))
        return Trained(truth, tmp_path, f"{len(rows)}")

    inputs = SearchInputs(
        agent=agent("random", evaluations=256, polish=None),
        space=space,
        features=features(space),
        rules={},
        settings=OmegaConf.create(SETTINGS | {"label_budget": label_budget}),
        train=train,
        measure=lambda kept: truth.predict(kept).mean,
        fabric=one_process(),
        seed=0,
        checkpoints=tmp_path,
        config=[],
    )
    dense = Labels(space.dense[None], truth.predict(space.dense[None]).mean.double(), ["sampler"])
    found = search(inputs, dense, train(dense), RATIO, Stopwatch())

    assert len(rows) == rounds and rows == sorted(set(rows))
    assert found.trained.signature == f"{rounds}"
    assert int(found.measured.proposed.sum()) <= label_budget
    even = uniform(space, torch.tensor([RATIO]))
    assert found.measured.least < float(truth.predict(even).mean)
    assert len({row["step"] for row in found.history}) == len(found.history)
