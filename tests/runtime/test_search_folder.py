import json
from pathlib import Path

import pytest
import torch

from ppf.agents.ratio_agent import RatioAgent
from ppf.errors import PPFError
from ppf.labels.context import PruningContext
from ppf.policy_file import provenance
from ppf.runtime import DynamicModel
from ppf.space import uniform
from tests.searched import write_search

Search = tuple[Path, list[str], PruningContext]


@pytest.fixture(scope="module")
def search(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search run's folder with the uniform policy at 0.3, overrides of its paths, its models."""
    folder = tmp_path_factory.mktemp("search")
    cfg, context = write_search(folder, cache)
    return folder, [f"paths.{name}={cfg.paths[name]}" for name in ("artefacts", "cache")], context


def test_a_static_search_answers_its_own_ratio(search: Search) -> None:
    found, paths, searched = search
    model = DynamicModel.from_search(found, *paths)
    ids = torch.arange(64)[None]
    torch.testing.assert_close(model.lm.model(ids).logits, searched.model.lm.model(ids).logits)
    model.set_ratio(0.3)
    assert model.ratios == [0.0, 0.3]
    assert model.policies.predicted(0.3) == (5.0, 0.1)
    assert model.policies.predicted(0.2) is None
    with searched.model.pruner.at(model.pruner.kept) as same:
        torch.testing.assert_close(model.lm.model(ids).logits, same(ids).logits)
    with pytest.raises(PPFError, match=r"for ratio=0\.3, and none for 0\.4.*mode=chain"):
        model.set_ratio(0.4)


def test_a_dynamic_search_answers_any_ratio_that_it_has_learnt(
    search: Search, tmp_path: Path
) -> None:
    _, paths, searched = search
    knots = torch.tensor([0.0, 0.507], dtype=torch.double)
    kept = torch.stack([searched.model.space.dense, uniform(searched.model.space, knots[1:])[0]])
    nats = torch.tensor([3.0, 4.0])
    agent = RatioAgent(
        searched.model.space, knots, kept.double(), nats, nats / 10, provenance(searched)
    )
    folder = tmp_path / "a búsqueda (new)"
    folder.mkdir()
    agent.save(folder)
    model = DynamicModel.from_search(folder, *paths)
    assert model.ratios == [percent / 100 for percent in range(51)], "0.51 would be refused"
    record = folder / "agent.json"
    original = record.read_text()
    changed = json.loads(original)
    changed["space"]["sites"][0]["layer"], changed["space"]["sites"][2]["layer"] = 1, 0
    record.write_text(json.dumps(changed))
    with pytest.raises(PPFError, match=r"agent\.json has other sites than the model"):
        DynamicModel.from_search(folder, *paths)
    record.write_text(original)
    for ratio in (0.0, 0.137, 0.37, 0.5):
        model.set_ratio(ratio)
        assert ratio <= model.ratio < ratio + 0.1
        assert model.policies.predicted(ratio)[0] == pytest.approx(3 + ratio / 0.507, rel=1e-5)
    with pytest.raises(PPFError, match="give 0 ≤ ratio ≤ 0.507"):
        model.set_ratio(0.6)
    named = DynamicModel.from_search(folder / "agent.json", *paths)
    assert named.policy(0.37) == model.policy(0.37)
