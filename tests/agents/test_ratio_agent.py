import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ppf
from ppf.agents.ratio_agent import WEIGHTS, RatioAgent
from ppf.errors import PPFError
from tests.agents.synthetic import layered, quadratic
from tests.records import examples

RECORD = {name: examples.agent()[name] for name in ("config", "signatures")}
KNOTS = torch.tensor([0.0, 0.1, 0.3, 0.5], dtype=torch.double)


def ratio_agent(layers: int = 10) -> RatioAgent:
    objective = quadratic(layered(layers))
    generator = torch.Generator().manual_seed(0)
    deviation = torch.randn(4, len(objective.space), generator=generator)
    kept = objective.policy(deviation, KNOTS)
    mean, std = torch.tensor([3.0, 3.1, 3.3, 3.7]), torch.tensor([0.0, 0.1, 0.1, 0.2])
    return RatioAgent(objective.space, KNOTS, kept.double(), mean, std, RECORD)


def test_answers_meet_the_budget_at_any_ratio() -> None:
    agent = ratio_agent()
    for ratio in torch.linspace(0, 0.5, 41).tolist():
        saved = agent.space.saved(torch.tensor(agent.policy(ratio)))
        assert -1e-9 < saved - ratio < agent.space.params.min() / agent.space.total
    assert agent.policy(0.0) == agent.space.dense.tolist()
    assert agent.policy(0.3) == agent.widths[2].int().tolist()
    for ratio in (-0.1, 0.51):  # which it has not learnt
        with pytest.raises(PPFError, match="give 0 ≤ ratio ≤ 0.5"):
            agent.policy(ratio)


def test_is_saved_and_loaded_without_pickle(tmp_path: Path) -> None:
    agent = ratio_agent()
    path = agent.save(tmp_path)
    content = json.loads(path.read_text())
    assert content["format"] == 1 and content["ratios"] == [0.0, 0.5]
    assert content["signatures"] == RECORD["signatures"] and content["units"]["0.attention"] == 3
    for place in (tmp_path, path, str(tmp_path)):
        again = ppf.load_agent(place)
        assert again.space == agent.space and again.policy(0.37) == agent.policy(0.37)
        assert again.predicted(0.37) == agent.predicted(0.37)
    space = agent.space.priced("kv", [4, 0] * 10)
    RatioAgent(space, KNOTS, agent.widths, agent.mean, agent.std, RECORD).save(tmp_path)
    again = ppf.load_agent(tmp_path)
    kept = torch.tensor(again.policy(0.4))
    assert again.space == space and space.saved(kept) == pytest.approx(0.4)


def test_a_path_without_an_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match=r"agent\.json cannot be read .* mode=dynamic"):
        ppf.load_agent(tmp_path)
    (tmp_path / "agent.json").write_text("{}")
    with pytest.raises(PPFError, match=r"agent\.json: format is missing: .* mode=dynamic"):
        ppf.load_agent(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"knots": KNOTS.flip(0)},
        {"knots": KNOTS + 0.1},
        {"knots": KNOTS * 2},
        {"knots": KNOTS[None]},
        {"knots": torch.tensor(0.0)},
        {"knots": torch.arange(4)},
        {"mean": torch.zeros(4).to(torch.float8_e4m3fn)},
        {"mean": torch.full((4,), torch.nan)},
        {"std": torch.zeros(3)},
        {"widths": torch.full((4, 20), 1e9)},
        {"widths": torch.full((4, 20), -1.0)},
        {"widths": torch.zeros(4, 19)},
        {"more": torch.zeros(4)},
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: dict) -> None:
    ratio_agent().save(tmp_path)
    save_file(load_file(tmp_path / WEIGHTS) | change, tmp_path / WEIGHTS)
    with pytest.raises(PPFError, match="does not fit"):
        ppf.load_agent(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 64])
def test_files_that_are_not_weights_are_refused(tmp_path: Path, content: bytes | None) -> None:
    ratio_agent().save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    if content is not None:
        (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(PPFError, match=r"agent\.safetensors cannot be read"):
        ppf.load_agent(tmp_path)
