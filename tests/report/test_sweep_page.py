import json
from pathlib import Path

import numpy as np
import pytest

from ppf.errors import PPFError
from ppf.records.run import BEGUN_BY
from ppf.report.__main__ import main
from ppf.report.sweep import read_rows, read_sweep
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


def test_values_in_brackets_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for types in ("[f16]", "[q8_0,q4_0]"):
        job(tmp_path, [f"budget.cost.types={types}"], {"test_ppl": 20.0})
    write_sweep(tmp_path)
    printed = capsys.readouterr().out
    assert "[f16]" in printed and "[q8_0,q4_0]" in printed


def test_ratios_between_two_per_cents_are_written_as_such(tmp_path: Path) -> None:
    (axes,) = sweep_figure(read_sweep(searches(tmp_path))).axes
    axes.set_xticks([20, 22.5])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["20 %", "22.5 %"]


def plotted(folder: Path) -> dict[str, list[float]]:
    """The lines of the plot: name in the legend → values."""
    (axes,) = sweep_figure(read_sweep(folder)).axes
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


def test_dollar_signs_of_overrides_are_no_formulas(tmp_path: Path) -> None:
    for name in (r"$\frac$", "$x$"):
        job(tmp_path / name.replace("\\", ""), [f"a={name}"], {"test_ppl": 30.0})
    write_sweep(tmp_path)


def test_names_are_whole_where_short_ones_would_be_equal(tmp_path: Path) -> None:
    for agent, ratio in [("a/ppo", 0.2), ("b/ppo", 0.4)]:
        job(tmp_path, [f"agent={agent}", f"ratio={ratio}"], {"ratio": ratio, "test_ppl": 30.0})
    assert [*plotted(tmp_path)] == ["agent=a/ppo", "agent=b/ppo"]


def test_error_bars_reach_over_all_seeds_and_wide_plots_are_logarithmic(tmp_path: Path) -> None:
    for seed, found in enumerate((20.0, 21.0, 28.0)):
        job(tmp_path, [f"seed={seed}", "ratio=0.2"], {"ratio": 0.2, "test_ppl": found})
    job(tmp_path, ["seed=0", "ratio=0.4"], {"ratio": 0.4, "test_ppl": 90.0})
    (axes,) = sweep_figure(read_sweep(tmp_path)).axes
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
    (axes,) = sweep_figure(read_sweep(tmp_path)).axes
    assert axes.lines[0].get_xdata().tolist() == [100.0, 60.0]
    assert axes.get_xlabel() == "MiB of prunable matrices in the file"


def test_without_ratios_jobs_are_ranked(tmp_path: Path) -> None:
    for decay, error in [("0.1", 0.4), ("0.01", 0.2), ("1.0", None)]:
        job(tmp_path, [f"predictor.weight_decay={decay}"], {"nmse": error, "labels": 24})
    (axes,) = sweep_figure(read_sweep(tmp_path)).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["weight_decay=0.01", "weight_decay=0.1"]


def test_jobs_of_several_ratios_are_ranked_by_their_results(tmp_path: Path) -> None:
    for name, ratio, ppl in [("dense", None, 20.0), ("a", 0.3, 50.0), ("b", 0.5, 40.0)]:
        job(tmp_path, [f"path={name}"], {"ratio": ratio, "test_ppl": ppl})
    for number in range(50):
        job(tmp_path, [f"path={number}"], {"ratio": 0.1, "test_ppl": 60.0 + number})
    (axes,) = sweep_figure(read_sweep(tmp_path)).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:4] == ["dense", "b, 50.0 %", "a, 30.0 %", "path=0, 10.0 %"]
    assert len(names) == 40, "the best ones"


def test_rows_are_drawn_as_their_multirun_was(tmp_path: Path) -> None:
    job(tmp_path, ["a=1"], {"ratio": 0.3, "labelling_ppl": 40.0, "test_ppl": 41.0})
    job(tmp_path, ["a=2"], {"ratio": 0.2, "test_ppl": 30.0, "labelling_ppl": 31.0})
    rows = write_sweep(tmp_path)["rows"]
    assert read_rows(rows).figures == read_sweep(tmp_path).figures


def test_jobs_far_apart_keep_their_names_when_one_has_no_ratio(tmp_path: Path) -> None:
    for name, ratio, ppl in [("dense", None, 20.0), ("a", 0.3, 40.0), ("b", 0.5, 900.0)]:
        job(tmp_path, [f"path={name}"], {"ratio": ratio, "test_ppl": ppl})
    (axes,) = sweep_figure(read_sweep(tmp_path)).axes
    assert axes.get_yscale() == "linear"
    assert len(axes.get_yticklabels()) == 3


def test_jobs_without_numbers_have_a_page(tmp_path: Path) -> None:
    job(tmp_path, ["seed=0"])
    assert "1 finished jobs" in write_sweep(tmp_path)["report"].read_text()


def test_the_report_of_one_run_is_kept(tmp_path: Path) -> None:
    job(tmp_path, ["seed=0"], {"test_ppl": 30.0}, place="run")
    report = tmp_path / "run" / "report.html"
    report.write_text("of the search")
    with pytest.raises(PPFError, match="has the results of one run: give a folder of several"):
        write_sweep(tmp_path / "run")
    assert report.read_text() == "of the search"


def test_a_foreign_mark_of_a_multirun_is_no_other_error(tmp_path: Path) -> None:
    job(tmp_path, ["seed=0"], {"test_ppl": 20.0})
    (tmp_path / "seed=0").rename(tmp_path / "0")
    mark = tmp_path / "0" / BEGUN_BY
    mark.parent.mkdir()
    mark.write_bytes(b"\xff")
    assert len(read_sweep(tmp_path).rows) == 1


def test_the_command_names_the_files_or_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ppf.report", "sweep", str(tmp_path)])
    with pytest.raises(SystemExit, match="Error: .* has no finished job"):
        main()
    searches(tmp_path)
    main()
    assert str(tmp_path / "report.html") in capsys.readouterr().out


def test_rows_without_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "results.json"
    rows.write_text(json.dumps({"versions": [], "axes": [], "rows": [{"ratio": 0.3}]}))
    monkeypatch.setattr("sys.argv", ["ppf.report", "plot", str(rows)])
    with pytest.raises(SystemExit, match="results.json has no numbers to plot: give another file"):
        main()
