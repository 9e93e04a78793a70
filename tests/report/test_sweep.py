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


def test_numbers_of_hydra_are_numbers(tmp_path: Path) -> None:
    for ratio in (".3", "1.", "1e-2", "+.5"):
        job(tmp_path, [f"ratio={ratio}"], {"ratio": float(ratio), "test_ppl": 40.0})
    assert {row["ratio"] for row in read_sweep(tmp_path).rows} == {0.3, 1.0, 0.01, 0.5}


def test_rows_are_jobs_sorted_by_ratio_and_perplexity(tmp_path: Path) -> None:
    sweep = read_sweep(searches(tmp_path))
    assert sorted(sweep.axes) == ["agent", "ratio", "seed"]  # model=tiny is the same for all
    assert list(sweep.figures) == ["test_ppl", "evaluations", "seconds"]
    rows = [(row["ratio"], row["agent"], row["seed"]) for row in sweep.rows]
    assert rows == [(0.2, "cmaes", 0), (0.2, "ppo", 0), (0.2, "ppo", 1), (0.4, "ppo", 0)]


def test_a_job_that_ran_again_in_another_folder_counts_once(tmp_path: Path) -> None:
    overrides = ["agent=cmaes", "ratio=0.2", "seed=0"]
    job(searches(tmp_path), overrides, {"ratio": 0.2, "test_ppl": 20.0}, place="7-agent-cmaes")
    older = tmp_path / ",".join(overrides) / "run.json"
    os.utime(older, (1, 1))
    assert len(read_sweep(tmp_path).rows) == 4
    assert read_sweep(tmp_path).rows[0]["test_ppl"] == 20.0
    os.utime(tmp_path / "7-agent-cmaes" / "run.json", (0, 0))
    assert read_sweep(tmp_path).rows[0]["test_ppl"] == 29.0


def test_runs_from_python_are_told_apart_by_their_configs(tmp_path: Path) -> None:
    for number in range(3):
        job(tmp_path, [], {"ratio": number / 10, "test_ppl": 20.0}, place=str(number))
        file = tmp_path / str(number) / "run.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"overrides": [], "config": str(number) * 12})
        )
    assert len(read_sweep(tmp_path).rows) == 3


def test_the_table_has_means_over_seeds_and_half_their_range(tmp_path: Path) -> None:
    sweep = read_sweep(searches(tmp_path))
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


def test_the_best_mean_comes_first_whatever_single_seeds_reach(tmp_path: Path) -> None:
    for agent, found in {"ppo": (10.0, 50.0), "sac": (20.0, 22.0)}.items():
        for seed, perplexity in enumerate(found):
            job(tmp_path, [f"agent={agent}", f"seed={seed}"], {"test_ppl": perplexity})
    assert [row[0] for row in read_sweep(tmp_path).table.texts] == ["sac", "ppo"]


def test_a_mean_that_leaves_out_a_diverged_run_is_not_the_best(tmp_path: Path) -> None:
    for agent, found in {"ppo": (None, 10.0), "sac": (20.0, 22.0)}.items():
        for seed, perplexity in enumerate(found):
            job(tmp_path, [f"agent={agent}", f"seed={seed}"], {"test_ppl": perplexity})
    sweep = read_sweep(tmp_path)
    assert [row[:2] for row in sweep.table.texts] == [["sac", "2"], ["ppo", "1 of 2"]]


def test_a_job_with_several_ratios_has_a_row_for_each(tmp_path: Path) -> None:
    curve = [{"ratio": 0.4, "labelling_ppl": 50.0}, {"ratio": 0.2, "labelling_ppl": 30.0}]
    job(tmp_path, ["mode=dynamic"], *curve)
    sweep = read_sweep(tmp_path)
    assert sweep.axes == ["ratio"] and [row["ratio"] for row in sweep.rows] == [0.2, 0.4]


def test_an_override_may_be_a_list(tmp_path: Path) -> None:
    for ratios in ("[0.1,0.2]", "[0.3]"):
        job(tmp_path, [f"ratios={ratios}"], {"test_ppl": 30.0})
    assert {row[0] for row in read_sweep(tmp_path).table.texts} == {"[0.1,0.2]", "[0.3]"}


def test_ratios_of_figures_and_of_overrides_are_one_axis(tmp_path: Path) -> None:
    searches(tmp_path)
    several = [{"ratio": ratio, "test_ppl": 31.0} for ratio in (0.2, 0.4)]
    job(tmp_path, ["mode=chain"], *several)
    rows = read_sweep(tmp_path).rows
    assert [row["ratio"] for row in rows if row["mode"] == "chain"] == [0.2, 0.4]
    assert {row["agent"] for row in rows if row["mode"] == "chain"} == {""}


def test_a_command_without_figures_shows_its_metric(tmp_path: Path) -> None:
    job(tmp_path, ["seed=0"], metric=2.5)
    job(tmp_path, ["seed=1"])
    assert [row["metric"] for row in read_sweep(tmp_path).rows] == [2.5, None]


def test_models_of_an_evaluation_are_told_apart_and_ranked(tmp_path: Path) -> None:
    names = {"dense": None, "a": 0.3, "b": 0.3}
    for place, path in enumerate(("[dense,a]", "[dense,b]")):
        figures = [
            {"ratio": names[name], "test_ppl": 20.0 + 10 * (name != "dense") + place, "model": name}
            for name in path.strip("[]").split(",")
        ]
        job(tmp_path, [f"path={path}"], *figures)
    sweep = read_sweep(tmp_path)
    assert set(sweep.axes) == {"ratio", "model", "path"} and sweep.figures[0] == "test_ppl"
    assert [row["test_ppl"] for row in sweep.rows] == [30.0, 31.0, 20.0, 21.0]


def test_the_dense_model_of_an_evaluation_has_no_ratio(tmp_path: Path) -> None:
    figures = [{"ratio": ratio, "test_ppl": 20.0, "model": str(ratio)} for ratio in (None, 0.3)]
    job(tmp_path, ["path=DENSE,PRUNED"], *figures)
    table = read_sweep(tmp_path).table
    place = table.names.index("ratio")
    assert [row[place] for row in table.texts] == ["0.3", ""]


def test_overrides_can_be_repeated_as_they_are_shown(tmp_path: Path) -> None:
    values = ("null", "true", "0.123456", "1234567.5", "3")
    for value in values:
        job(tmp_path, [f"agent.polish={value}"], {"test_ppl": 30.0})
    assert {row[0] for row in read_sweep(tmp_path).table.texts} == {*values}


def test_nats_have_four_decimals(tmp_path: Path) -> None:
    for tune, seed, found in [("full", 0, 3.388), ("lora", 0, 3.394), ("lora", 1, 3.3942)]:
        figures = {"nll_recovered": found, "won_back": 0.25}
        job(tmp_path, [f"tune={tune}", f"seed={seed}"], figures)
    table = read_sweep(tmp_path).table
    assert [row[2] for row in table.texts] == ["3.3880", "3.3941 ± 0.0001"]


def test_numbers_that_cannot_be_averaged_are_refused(tmp_path: Path) -> None:
    for seed in "01":
        job(tmp_path, [f"seed={seed}"], {"test_ppl": 1e308})
    with pytest.raises(PPFError, match="too large"):
        read_sweep(tmp_path)


def test_an_empty_folder_and_a_damaged_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match="no finished job"):
        read_sweep(tmp_path)
    job(tmp_path, ["seed=0"])
    (tmp_path / "seed=0" / "run.json").write_text("{")
    with pytest.raises(PPFError, match="delete it and run its job again"):
        read_sweep(tmp_path)
