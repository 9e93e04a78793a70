"""The real commands on a tiny model: an agent for every ratio, and other budgets."""

import json
import re
from pathlib import Path

import pytest

import ppf
from tests.cli.conftest import HASTY, TINY, Run, only

SMALL = (*TINY, "space.channel_multiple=16", "logger=csv", "search.rounds=1", *HASTY)
PPO = ("agent=ppo", "agent.episodes=16", "agent.iterations=3")


@pytest.mark.slow
def test_one_agent_for_every_ratio(run: Run, text: str, tmp_path: Path) -> None:
    quick = ("search.points=4", "search.stride=2", "search.polish.generations=2")
    asked = ("mode=dynamic", "ratios=[0.2,0.37]", "report_test=true")
    planned = run("search", "plan=true", *asked, *quick, text, *SMALL, *PPO).stdout
    said = run("search", *asked, *quick, text, *SMALL, *PPO).stdout
    assert "Training on ratios" in said and "PPF" in said
    path = only(tmp_path / "outputs", "agent.json")
    agent = ppf.load_agent(path.parent)
    summary = json.loads(path.with_name("summary.json").read_text())
    rows = [row for row in summary["results"] if row["policy"] == "PPF"]
    assert [row["ratio"] for row in rows] == [0.2, 0.37]
    figures = json.loads(path.with_name("run.json").read_text())["figures"]
    assert [row["ratio"] for row in figures] == [0.2, 0.37]
    assert f"{figures[0]['evaluations']} labels" in planned
    assert [row["test_ppl"] for row in figures] == [row["test"]["perplexity"] for row in rows]
    for row in rows:
        mean, std = agent.predicted(row["ratio"])
        assert row["predicted"]["nll"] == pytest.approx(mean)
        assert row["predicted"]["std"] == pytest.approx(std)
        assert [*row["kept"].values()] == agent.policy(row["ratio"])
    names = ["dense", *["uniform", "owl", "alphapruning", "flap", "block_influence"]]
    others = {row["policy"]: row for row in summary["results"] if row["ratio"] < 0.3}
    assert set(names) <= others.keys() and "predicted" in others["flap"], "rules are predicted"
    assert set(agent.record["signatures"]) == {"statistics", "order", "bank", "labels"}


@pytest.mark.slow
def test_a_chain_of_searches_gives_one_agent_for_every_ratio(
    run: Run, text: str, tmp_path: Path
) -> None:
    quick = ("search.rounds=2", "search.top_k=2", "search.points=3", "predictor.windows=1")
    others = ("predictor", "rounds", "labels.count")
    small = (*(word for word in SMALL if not any(key in word for key in others)), text)
    own = ("agent=evolution", "agent.generations=4")
    asked = ("mode=chain", *own, "ratios=[0.2,0.3,0.4]", *small, *quick)
    planned = run("search", "plan=true", *asked).stdout
    said = run("search", *asked).stdout
    places = [said.index(f"Searching at ratio {ratio} ") for ratio in (0.55, 0.3, 0.05)]
    assert places == sorted(places) and "gradients of the best policies" in said
    path = only(tmp_path / "outputs", "agent.json")
    agent = ppf.load_agent(path.parent)
    assert agent.knots.tolist() == pytest.approx([0, 0.05, 0.3, 0.55])
    summary = json.loads(path.with_name("summary.json").read_text())
    (middle,) = (r for r in summary["results"] if r["policy"] == "PPF" and r["ratio"] == 0.3)
    assert middle["predicted"]["nll"] == pytest.approx(middle["measured"]["nll"])
    assert {row["policy"] for row in summary["results"]} == {"dense", "uniform", "PPF"}
    figures = json.loads(path.with_name("run.json").read_text())["figures"]
    # The dense model, four proposals and uniform pruning at three ratios, six rules at one of
    # them; at 20 and 40 % the agent and uniform pruning, at 30 % both are known. Rules may agree.
    most = 1 + 3 * 5 + 6 + 2 * 2
    assert most - 6 <= figures[0]["evaluations"] <= most
    bound = re.search(r" (\d+) labels", planned)
    assert bound and figures[0]["evaluations"] <= int(bound[1])
