import json
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from ppf.errors import PPFError
from ppf.report.__main__ import main
from ppf.report.sweep import read_sweep, sweep_figure, write_sweep


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
        ("owl", 0.2, 0, 29.0),
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
        ("owl", "1", "29.00"),
        ("ppo", "2", "31.00 ± 1.00"),
        ("ppo", "1", "60.50"),
    ]


def test_the_best_mean_comes_first_and_one_without_a_diverged_run_last(tmp_path: Path) -> None:
    agents = {"ppo": (10.0, 50.0), "random": (20.0, 22.0), "owl": (None, 10.0)}
    for agent, found in agents.items():
        for seed, perplexity in enumerate(found):
            job(tmp_path, [f"agent={agent}", f"seed={seed}"], {"test_ppl": perplexity})
    rows = [row[:2] for row in read_sweep(tmp_path).table.texts]
    assert rows == [["random", "2"], ["ppo", "2"], ["owl", "1 of 2"]]


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


def test_all_files_are_written_and_the_table_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(searches(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {"agent": "owl", "ratio": 0.2, "seed": 0}.items() <= rows[0].items()
    assert (tmp_path / rows[0]["job"] / "run.json").is_file()
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("ratio,agent,runs,test perplexity,± test")
    assert "31.0,1.0" in lines[2] and "31.00 ± 1.00" in capsys.readouterr().out
    assert (tmp_path / "results.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text()
    assert "31.00 ± 1.00" in page and "<svg" in page


@pytest.mark.parametrize("newest", [True, False])
def test_a_job_that_ran_again_in_another_folder_counts_once(tmp_path: Path, newest: bool) -> None:
    overrides = ["agent=owl", "ratio=0.2", "seed=0"]
    job(searches(tmp_path), overrides, {"ratio": 0.2, "test_ppl": 20.0}, place="again")
    older = ",".join(overrides) if newest else "again"
    os.utime(tmp_path / older / "run.json", (1, 1))
    found = [row["test_ppl"] for row in read_sweep(tmp_path).rows]
    assert sorted(found) == [20.0 if newest else 29.0, 30.0, 32.0, 60.5]


@pytest.mark.parametrize("second", ["a", "b"])
def test_jobs_of_several_versions_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str
) -> None:
    for seed, version in enumerate(["a", second]):
        job(tmp_path, [f"seed={seed}"], {"test_ppl": 20.0}, version=version)
    write_sweep(tmp_path)
    versions = json.loads((tmp_path / "results.json").read_text())["versions"]
    assert versions == sorted({"a", second})
    assert ("several versions: a; b." in capsys.readouterr().out) == (second == "b")


def drawn(folder: Path) -> tuple[Axes, dict[str, list[float]]]:
    """The plot, and its lines: name in the legend → values."""
    figure = sweep_figure(read_sweep(folder))
    assert figure
    (axes,) = figure.axes
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    lines = {name: getattr(handle, "lines", [handle])[0] for handle, name in pairs}
    return axes, {name: np.asarray(line.get_ydata()).tolist() for name, line in lines.items()}


def test_lines_are_named_by_overrides_and_uniform_pruning_is_one_of_them(tmp_path: Path) -> None:
    for option, count, found in (("a/random", 8, 30.0), ("a/random", 16, 29.0), ("$b$", 8, 28.0)):
        given = [f"sampler={option}", f"labels.count={count}", "ratio=0.2"]
        job(tmp_path, given, {"ratio": 0.2, "test_ppl": found, "uniform_test_ppl": 40.0})
    job(tmp_path, ["ratio=0.4"], {"ratio": 0.4, "test_ppl": 70.0, "uniform_test_ppl": 90.0})
    lines = {
        "sampler=$b$ labels.count=8": [28.0],
        "sampler=a/random labels.count=16": [29.0],
        "sampler=a/random labels.count=8": [30.0],
        "default": [70.0],
    }
    assert drawn(tmp_path)[1] == lines | {"uniform pruning": [40.0, 90.0]}
    write_sweep(tmp_path)  # dollar signs are no formulas
    for ratio, uniform in ((0.2, 80.0), (0.4, 180.0)):  # as if of another model
        found = {"ratio": ratio, "test_ppl": 75.0, "uniform_test_ppl": uniform}
        job(tmp_path, ["model=b", f"ratio={ratio}"], found)
    assert "uniform pruning" not in drawn(tmp_path)[1]


def run(monkeypatch: pytest.MonkeyPatch, *given: object) -> None:
    """`python -m ppf.report`."""
    monkeypatch.setattr("sys.argv", ["ppf.report", *map(str, given)])
    main()


def test_rows_are_drawn_again_with_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, plot = tmp_path / "results.json", tmp_path / "results.png"
    write_sweep(searches(tmp_path / "jobs"))
    (tmp_path / "jobs" / "results.json").rename(rows)
    run(monkeypatch, "plot", rows)
    first = plot.read_bytes()
    assert first == (tmp_path / "jobs" / "results.png").read_bytes()
    run(monkeypatch, "plot", rows, "--line", "agent=ppo", "our agent")
    assert plot.read_bytes() != first
    with pytest.raises(SystemExit, match="no line 'random': give one of agent=owl, agent=ppo"):
        run(monkeypatch, "plot", rows, "--line", "random", "our agent")


def test_jobs_without_ratios_have_a_table_and_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"Error: .* has no sub-folders of finished"):
        run(monkeypatch, "sweep", tmp_path)
    for types in ("[f16]", "[q8_0,q4_0]"):
        job(tmp_path, [f"types={types}"], {"nmse": 0.5})
    run(monkeypatch, "sweep", tmp_path)
    assert "[f16]" in capsys.readouterr().out and not (tmp_path / "results.png").exists()
    assert "2 finished jobs" in (tmp_path / "report.html").read_text()
    with pytest.raises(PPFError, match="no sub-folders of finished jobs"):  # its report is kept
        write_sweep(tmp_path / "types=[f16]")
