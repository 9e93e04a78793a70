import json
import os
from pathlib import Path

import pytest

from ppf.errors import PPFError
from ppf.report.sweep import read_sweep


def job(
    folder: Path,
    overrides: list[str],
    *figures: dict,
    metric: float | None = None,
    version: str | None = None,
    place: str | None = None,
) -> None:
    """A finished job's folder."""
    name = folder / (place or ",".join(overrides))
    name.mkdir(parents=True)
    record = {
        "command": "search",
        "overrides": ["model=tiny", *overrides],
        "config": "0123456789ab",
        "metric": metric,
        "figures": list(figures),
        "seconds": 2.0,
        "version": version,
    }
    (name / "run.json").write_text(json.dumps(record))


def searches(folder: Path) -> Path:
    for agent, ratio, seed, found in [
        ("ppo", 0.2, 0, 30.0),
        ("ppo", 0.2, 1, 32.0),
        ("cmaes", 0.2, 0, 29.0),
        ("ppo", 0.4, 0, 60.5),
    ]:
        overrides = [f"agent={agent}", f"ratio={ratio}", f"seed={seed}"]
        job(folder, overrides, {"ratio": ratio, "test_ppl": found, "evaluations": 100})
    return folder


def test_the_table_has_means_over_seeds_and_half_their_range(tmp_path: Path) -> None:
    sweep = read_sweep(searches(tmp_path))
    assert sorted(sweep.axes) == ["agent", "ratio", "seed"]  # model=tiny is the same for all
    assert list(sweep.figures) == ["test_ppl", "evaluations", "seconds"]
    found = sweep.table
    shown = [dict(zip(found.heads, row, strict=True)) for row in found.texts]
    assert [(row["agent"], row["runs"], row["test perplexity"]) for row in shown] == [
        ("cmaes", "1", "29.00"),
        ("ppo", "2", "31.00 ± 1.00"),
        ("ppo", "1", "60.50"),
    ]


def test_an_interval_stands_beside_its_figure(tmp_path: Path) -> None:
    for seed, (found, low, high) in enumerate([(0.2, 0.1, 0.4), (0.4, 0.2, 0.6)]):
        figures = {"nmse": found, "nmse_low": low, "nmse_high": high}
        job(tmp_path, ["labels.count=128", f"seed={seed}"], figures)
    table = read_sweep(tmp_path).table
    assert [*table.heads] == ["runs", "nmse", "nmse low", "nmse high", "seconds"]
    assert table.texts[0][1:4] == ["0.3 ± 0.1", "0.15", "0.5"]


def test_the_best_mean_comes_first_and_one_without_a_diverged_run_last(tmp_path: Path) -> None:
    agents = {"ppo": (10.0, 50.0), "sac": (20.0, 22.0), "owl": (None, 10.0)}
    for agent, found in agents.items():
        for seed, perplexity in enumerate(found):
            job(tmp_path, [f"agent={agent}", f"seed={seed}"], {"test_ppl": perplexity})
    rows = [row[:2] for row in read_sweep(tmp_path).table.texts]
    assert rows == [["sac", "2"], ["ppo", "2"], ["owl", "1 of 2"]]


@pytest.mark.parametrize("newest", [True, False])
def test_a_job_that_ran_again_in_another_folder_counts_once(tmp_path: Path, newest: bool) -> None:
    overrides = ["agent=cmaes", "ratio=0.2", "seed=0"]
    job(searches(tmp_path), overrides, {"ratio": 0.2, "test_ppl": 20.0}, place="7-agent-cmaes")
    os.utime(
        tmp_path / ("7-agent-cmaes" if not newest else ",".join(overrides)) / "run.json", (1, 1)
    )
    rows = read_sweep(tmp_path).rows
    (found,) = (row["test_ppl"] for row in rows if row["agent"] == "cmaes")
    assert len(rows) == 4 and found == (20.0 if newest else 29.0)


def test_runs_from_python_are_told_apart_by_their_configs(tmp_path: Path) -> None:
    for number in range(3):
        job(tmp_path, [], {"ratio": number / 10, "test_ppl": 20.0}, place=str(number))
        file = tmp_path / str(number) / "run.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"overrides": [], "config": str(number) * 12})
        )
    assert len(read_sweep(tmp_path).rows) == 3


def test_ratios_of_figures_and_of_overrides_are_one_axis(tmp_path: Path) -> None:
    searches(tmp_path)
    several = [{"ratio": ratio, "test_ppl": 31.0} for ratio in (0.4, 0.2)]
    job(tmp_path, ["mode=chain"], *several)
    rows = [row for row in read_sweep(tmp_path).rows if row["mode"] == "chain"]
    assert [(row["ratio"], row["agent"]) for row in rows] == [(0.4, ""), (0.2, "")]


def test_models_of_an_evaluation_are_told_apart_and_ranked(tmp_path: Path) -> None:
    for place, name in enumerate("ab"):
        dense = {"ratio": None, "test_ppl": 20.0, "model": "dense"}
        pruned = {"ratio": 0.3, "test_ppl": 30.0 + place, "model": name}
        job(tmp_path, [f"path=[dense,{name}]"], dense, pruned)
    table = read_sweep(tmp_path).table
    place, axes = table.names.index("test perplexity"), ["ratio", "model", "path"]
    assert set(table.names[:3]) == set(axes) and [row[0] for row in table.texts].count("") == 2
    assert [row[place] for row in table.texts] == ["30.00", "31.00", "20.00", "20.00"]


def test_overrides_can_be_repeated_as_they_are_shown(tmp_path: Path) -> None:
    values = ("null", "true", "0.123456", "1234567.5", "3", "[0.1,0.2]")
    for value in values:
        job(tmp_path, [f"agent.steps={value}"], metric=2.5)
    sweep = read_sweep(tmp_path)
    assert {row[0] for row in sweep.table.texts} == {*values}
    assert sweep.figures[0] == "metric", "of a command without figures"


def test_nats_have_four_decimals(tmp_path: Path) -> None:
    for tune, seed, found in [("full", 0, 3.388), ("lora", 0, 3.394), ("lora", 1, 3.3942)]:
        figures = {"nll_recovered": found, "won_back": 0.25}
        job(tmp_path, [f"tune={tune}", f"seed={seed}"], figures)
    table = read_sweep(tmp_path).table
    assert [row[2] for row in table.texts] == ["3.3880", "3.3941 ± 0.0001"]


def test_an_empty_folder_and_a_damaged_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match="no finished job"):
        read_sweep(tmp_path)
    job(tmp_path, ["seed=0"])
    (tmp_path / "seed=0" / "run.json").write_text("{")
    with pytest.raises(PPFError, match="delete it and run its job again"):
        read_sweep(tmp_path)
