import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ppf.report.html import write_page
from ppf.report.page import Page, ReportSection
from ppf.report.scores import Entry, LogPerplexity
from ppf.report.search import Accuracy, Pareto, SearchReport, search_page
from ppf.report.tables import Column, Table
from ppf.space import Prunable, build_space

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Parsed(HTMLParser):
    """Checks that tags are balanced, and gathers tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        links = ("src", "href", "xlink:href", "action", "data", "srcset")
        self.links += [value or "" for name, value in attrs if name in links]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture
def report() -> SearchReport:
    places = [Prunable(layer, "mlp", 4, 10) for layer in range(2)]
    space = build_space(places, name="mlp", kinds=["mlp"], channel_multiple=1, whole_sites=False)
    found = Entry("PPF", 0.375, LogPerplexity(3.0), LogPerplexity(3.1, 0.05))
    metrics = {"kendall": 0.876, "coverage": 0.5, "policies": 20, "intervals": 20}
    return SearchReport(
        title="A search of tiny <at> ratio 0.3",
        command="python search.py model=tiny",
        measured_on="Measured on 8 windows of 64 tokens of the labelling part of a text.",
        agent="PPO",
        dynamic=False,
        settings={"Compensation": "LeastSquares", "Seed": "0"},
        space=space,
        policies={"PPF": [3, 2], "uniform": [2, 2]},
        entries=[Entry("dense", 0, LogPerplexity(2.5)), found],
        candidates=[found],
        labels=[(0.2, 3.2)],
        history=[{"step": 0, "reward": 0.1, "round": 1}, {"step": 1, "reward": 0.2, "round": 2}],
        accuracy=Accuracy([3.0, 3.5], [0.1, 0.1], [3.1, 3.4], [0.1, 0.5], metrics, [0.0, 0.5]),
        proposals={},
        pareto=Pareto(("params", "kv"), [(0.3, 0.5), (0.2, 0.1)], [3.0, 3.2], [True, False]),
        seconds={"collect": 65.0, "search": 3.0},
        evaluations=12,
        paths={"policy.json": Path("outputs/run/policy.json")},
        signatures={"labels": "0123456789ab"},
        machine={"PPF": "0.1.0"},
        next_commands={"Measure it": "python evaluate.py policy=outputs/run/policy.json"},
    )


def written(report: SearchReport, folder: Path) -> str:
    write_page(folder / "report.html", search_page(report))
    return (folder / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    return re.sub(r"\s+", " ", Parsed(text).text)


def test_page_needs_no_network(report: SearchReport, tmp_path: Path) -> None:
    text = written(report, tmp_path)
    page = Parsed(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_page_shows_everything(report: SearchReport, tmp_path: Path) -> None:
    text = written(report, tmp_path)
    assert Parsed(text).tags.count("svg") == 5
    for said in (
        "A search of tiny <at> ratio 0.3", "python search.py model=tiny", "LeastSquares",
        "1 min 05 s", "outputs/run/policy.json", "0123456789ab", "gain over uniform pruning",
        "round 2", "proposed by the search", "params saved", "12 policies were measured",
        "Measured on 8 windows", "python evaluate.py policy=outputs/run/policy.json",
    ):  # fmt: skip
        assert said in words(text), said


def test_the_table_keeps_measured_and_predicted_apart(report: SearchReport, tmp_path: Path) -> None:
    text = words(written(report, tmp_path))
    table = text[text.index("Results") : text.index("Perplexity against pruning ratio")]
    assert "policy ratio labelling part predicted" in table
    assert "PPF (PPO) 37.5 % 20.09 22.20 (20.13 – 24.48)" in table


def test_long_tables_are_folded(report: SearchReport, tmp_path: Path) -> None:
    text = written(report, tmp_path)
    folded = re.findall(r"<details><summary>(.*?)</summary>", text)
    # Sites, accuracy by ratio, candidates, and the Pareto front.
    assert folded == ["Show 2 rows", "Show 10 rows", "Show 1 rows", "Show 1 rows"]


def test_agents_that_do_not_train_have_no_curves(report: SearchReport, tmp_path: Path) -> None:
    text = written(replace(report, history=[]), tmp_path)
    assert "Training of the agent" not in text
    assert Parsed(text).tags.count("svg") == 4


def test_figures_take_the_colours_of_the_page(report: SearchReport, tmp_path: Path) -> None:
    text = written(report, tmp_path)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "var(--ink)" in drawn
    assert "#24292f" not in drawn
    assert "prefers-color-scheme: dark" in text


def test_a_page_of_any_command_has_text_that_cannot_break_it(tmp_path: Path) -> None:
    table = Table([Column("a < b"), Column("n", str)], [["<script>", 1]])
    sections = [ReportSection("T & T", "note", facts={"x": "<b>"}, code=True, table=table)]
    page = Page("<title>", "cmd", ["one", "two", "three"], [], sections, {})
    write_page(tmp_path / "report.html", page)
    text = (tmp_path / "report.html").read_text()
    assert "<script>" not in text and "<b>" not in text
    assert "T & T" in words(text) and "two three" in words(text)
