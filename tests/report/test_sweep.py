import json
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ppf.errors import PPFError
from ppf.report.__main__ import main
from ppf.report.sweep import read_sweep, sweep_figure, write_sweep
from tests.report.test_search import Parsed


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


def test_values_are_shown_as_typed_and_intervals_beside_their_figure(tmp_path: Path) -> None:
    values = ("null", "true", "0.123456", "1234567.5", "3", "[0.1,0.2]")
    for value in values:
        job(tmp_path, [f"agent.steps={value}"], {"nll": 3.388, "nll_low": 3.1, "nll_high": 4.0})
    table = read_sweep(tmp_path).table
    assert [*table.heads] == ["agent.steps", "nll", "nll low", "nll high", "seconds"]
    assert {row[0] for row in table.texts} == {*values} and table.texts[0][1] == "3.3880"


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


def test_an_empty_folder_and_a_damaged_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match="no finished job"):
        read_sweep(tmp_path)
    job(tmp_path, ["seed=0"])
    (tmp_path / "seed=0" / "run.json").write_text("{")
    with pytest.raises(PPFError, match="delete it and run its job again"):
        read_sweep(tmp_path)


def test_all_files_are_written_and_the_table_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_sweep(searches(tmp_path))
    rows = json.loads(paths["rows"].read_text())["rows"]
    assert {"agent": "cmaes", "ratio": 0.2, "seed": 0}.items() <= rows[0].items()
    assert (tmp_path / rows[0]["job"] / "run.json").is_file()
    lines = paths["table"].read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("ratio,agent,runs,test perplexity,± test")
    assert "31.0,1.0" in lines[2] and "31.00 ± 1.00" in capsys.readouterr().out
    assert paths["plot"].stat().st_size > 1000
    page = Parsed(paths["report"].read_text())
    assert "31.00 ± 1.00" in page.text and "svg" in page.tags


def test_links_in_the_folder_are_replaced_and_not_followed(tmp_path: Path) -> None:
    folder, other = searches(tmp_path / "runs"), tmp_path / "other"
    other.write_text("kept")
    for name in ("results.json", "results.csv", "results.png", "report.html"):
        (folder / name).symlink_to(other)
    assert all(not path.is_symlink() for path in write_sweep(folder).values())
    assert other.read_text() == "kept"


@pytest.mark.parametrize("second", [None, "0.1.0, commit a", "0.1.0, commit b"])
def test_jobs_of_several_versions_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str | None
) -> None:
    for seed, version in enumerate(["0.1.0, commit a", second]):
        job(tmp_path, [f"seed={seed}"], {"test_ppl": 20.0}, version=version)
    paths = write_sweep(tmp_path)
    both = f"several versions: 0.1.0, commit a; {second or 'unknown'}."
    assert (both in capsys.readouterr().out) == (second != "0.1.0, commit a")
    versions = json.loads(paths["rows"].read_text())["versions"]
    assert versions == sorted({"0.1.0, commit a", second or "unknown"})


def drawn(folder: Path) -> Figure:
    figure = sweep_figure(read_sweep(folder))
    assert figure
    return figure


def plotted(folder: Path) -> dict[str, list[float]]:
    """The lines of the plot: name in the legend → values."""
    (axes,) = drawn(folder).axes
    handles, names = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    return {
        name: np.asarray(line.get_ydata()).tolist() for name, line in zip(names, lines, strict=True)
    }


def test_lines_are_named_by_overrides_and_uniform_pruning_is_one_of_them(tmp_path: Path) -> None:
    for option, count, found in (("a/random", 8, 30.0), ("a/random", 16, 29.0), ("$b$", 8, 28.0)):
        given = [f"sampler={option}", f"labels.count={count}", "ratio=0.2"]
        job(tmp_path, given, {"ratio": 0.2, "test_ppl": found, "uniform_test_ppl": 40.0})
    job(tmp_path, ["ratio=0.4"], {"ratio": 0.4, "test_ppl": 70.0, "uniform_test_ppl": 90.0})
    assert plotted(tmp_path) == {
        "uniform pruning": [40.0, 90.0],
        "sampler=$b$ labels.count=8": [28.0],
        "sampler=a/random labels.count=16": [29.0],
        "sampler=a/random labels.count=8": [30.0],
        "default": [70.0],
    }
    write_sweep(tmp_path)  # dollar signs are no formulas


def test_uniform_pruning_is_left_out_where_the_jobs_prune_several_models(tmp_path: Path) -> None:
    for model, uniform in (("a", 50.0), ("b", 500.0)):
        for ratio in (0.2, 0.4):
            found = {"ratio": ratio, "test_ppl": 30.0, "uniform_test_ppl": uniform * (1 + ratio)}
            job(tmp_path / str(ratio), [f"model={model}", f"ratio={ratio}"], found)
    assert plotted(tmp_path).keys() == {"model=a", "model=b"}


def test_error_bars_reach_over_all_seeds_and_wide_plots_are_logarithmic(tmp_path: Path) -> None:
    for seed, found in enumerate((20.0, 21.0, 28.0)):
        job(tmp_path, [f"seed={seed}", "ratio=0.2"], {"ratio": 0.2, "test_ppl": found})
    job(tmp_path, ["seed=0", "ratio=0.4"], {"ratio": 0.4, "test_ppl": 90.0})
    (axes,) = drawn(tmp_path).axes
    (bars,) = axes.containers
    ends = bars.lines[2][0].get_segments()[0][:, 1].tolist()
    assert ends == [20.0, 28.0] and bars.lines[0].get_ydata()[0] == 23.0
    assert axes.get_ylabel() == "test perplexity\n(mean and range over seeds)"
    assert axes.get_yscale() == "log"


def test_rows_are_drawn_again_with_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, plot = tmp_path / "results.json", tmp_path / "results.png"
    write_sweep(searches(tmp_path / "jobs"))["rows"].rename(rows)

    def run(*given: str) -> None:
        monkeypatch.setattr("sys.argv", ["ppf.report", "plot", str(rows), *given])
        main()

    run()
    assert plot.read_bytes() == (tmp_path / "jobs" / "results.png").read_bytes()
    run("--line", "agent=ppo", "our agent")
    assert plot.read_bytes() != (tmp_path / "jobs" / "results.png").read_bytes()
    assert str(plot) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no line 'sac': give one of agent=cmaes, agent=ppo"):
        run("--line", "sac", "our agent")
    rows.write_text('{"versions": [], "rows": [{}]}')
    with pytest.raises(SystemExit, match="Error: .*results.json: axes is missing"):
        run()


def test_searches_with_a_budget_of_bytes_are_drawn_against_size(tmp_path: Path) -> None:
    for ratio, size in [(0.5, 100.0), (0.7, 60.0)]:
        figures = {"test_ppl": 20.0, "ratio": ratio, "matrices_mib": size}
        job(tmp_path, [f"ratio={ratio}"], figures)
    (axes,) = drawn(tmp_path).axes
    assert axes.lines[0].get_xdata().tolist() == [100.0, 60.0]
    assert axes.get_xlabel() == "MiB of prunable matrices in the file"


def test_the_report_of_one_run_is_kept(tmp_path: Path) -> None:
    job(tmp_path, ["seed=0"], {"test_ppl": 30.0}, place="run")
    report = tmp_path / "run" / "report.html"
    report.write_text("of the search")
    with pytest.raises(PPFError, match="has the results of one run: give a folder of several"):
        write_sweep(tmp_path / "run")
    assert report.read_text() == "of the search"


def test_jobs_without_ratios_have_a_table_and_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ppf.report", "sweep", str(tmp_path)])
    with pytest.raises(SystemExit, match="Error: .* has no finished job"):
        main()
    for types in ("[f16]", "[q8_0,q4_0]"):
        job(tmp_path, [f"types={types}"], {"nmse": 0.5})
    main()
    printed = capsys.readouterr().out
    assert "[f16]" in printed and str(tmp_path / "report.html") in printed
    assert "2 finished jobs" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "results.png").exists()
