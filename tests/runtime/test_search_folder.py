import json
from pathlib import Path

import pytest
import torch

from ppf.errors import PPFError
from ppf.labels.context import PruningContext
from ppf.runtime import DynamicModel
from tests.searched import write_agent, write_search

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
    folder = tmp_path / "a búsqueda (new)"
    folder.mkdir()
    write_agent(folder, searched, highest=0.507)
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
    for ratio, nats in ((0.0, 3.0), (0.1, 3.2), (0.3035, 3.6), (0.5, 4 - 0.8 * 0.007 / 0.407)):
        model.set_ratio(ratio)
        assert ratio <= model.ratio < ratio + 0.1
        assert model.policies.predicted(ratio)[0] == pytest.approx(nats, rel=1e-5)
    with pytest.raises(PPFError, match="give 0 ≤ ratio ≤ 0.507"):
        model.set_ratio(0.6)
    named = DynamicModel.from_search(folder / "agent.json", *paths)
    assert named.policy(0.37) == model.policy(0.37)
