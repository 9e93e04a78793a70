import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ppf.errors import PPFError
from ppf.report.__main__ import main
from ppf.report.sweep import read_sweep
from ppf.report.sweep_page import sweep_figure, write_sweep
from tests.report.test_search import Parsed
from tests.report.test_sweep import job, searches


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


def test_lines_have_short_names_and_uniform_pruning_is_one_of_them(tmp_path: Path) -> None:
    options = [
        ("a/random", 8, "True", 30.0),
        ("a/random", 16, "True", 29.0),
        ("b", 8, "true", 28.0),
    ]
    for option, count, truth, found in options:
        given = [f"sampler={option}", f"labels.count={count}", f"sequential={truth}", "ratio=0.2"]
        job(tmp_path, given, {"ratio": 0.2, "test_ppl": found, "uniform_test_ppl": 40.0})
    job(tmp_path, ["ratio=0.4"], {"ratio": 0.4, "test_ppl": 70.0, "uniform_test_ppl": 90.0})
    assert plotted(tmp_path) == {
        "uniform pruning": [40.0, 90.0],
        "b, count=8, sequential=true": [28.0],
        "random, count=16, sequential=True": [29.0],
        "random, count=8, sequential=True": [30.0],
        "default": [70.0],
    }


def test_uniform_pruning_is_left_out_where_the_jobs_prune_several_models(tmp_path: Path) -> None:
    for model, uniform in (("a", 50.0), ("b", 500.0)):
        for ratio in (0.2, 0.4):
            found = {"ratio": ratio, "test_ppl": 30.0, "uniform_test_ppl": uniform * (1 + ratio)}
            job(tmp_path / str(ratio), [f"model={model}", f"ratio={ratio}"], found)
    assert plotted(tmp_path).keys() == {"a", "b"}


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
    run("--line", "ppo", "our agent")
    assert plot.read_bytes() != (tmp_path / "jobs" / "results.png").read_bytes()
    assert str(plot) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no line 'sac': give one of 'cmaes', 'ppo'"):
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


def test_names_are_whole_where_short_ones_would_be_equal(tmp_path: Path) -> None:
    for agent, ratio in [("a/ppo", 0.2), (r"a$\frac$/ppo", 0.4)]:
        job(
            tmp_path / "x", [f"agent={agent}"], {"ratio": ratio, "test_ppl": 30.0}, place=str(ratio)
        )
    assert [*plotted(tmp_path)] == ["agent=a/ppo", r"agent=a$\frac$/ppo"]
    write_sweep(tmp_path)  # dollar signs are no formulas


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
