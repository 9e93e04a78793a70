import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ppf.report.html import Pareto, PredictionScatter, SearchReport, write_report
from ppf.report.scores import Entry, LogPerplexity
from ppf.space import Prunable, build_space

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
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
    return SearchReport(
        title="A search of tiny <at> ratio 0.3",
        command="python search.py model=tiny",
        model="tiny",
        order="wanda",
        compensation="least_squares",
        text="wikipedia_sample",
        predictor="additive",
        agent="ppo",
        ratio_asked=0.3,
        ratio_achieved=0.375,
        share_of_all=0.123,
        space=space,
        kept=[3, 2],
        history=[{"step": 0, "reward": 0.1}, {"step": 1, "reward": 0.2}],
        held_out=PredictionScatter(
            [3.0, 3.5], [0.1, 0.1], [3.1, 3.4], [0.1, 0.5], {"Kendall": 0.876}
        ),
        summary=[Entry("dense", 0, LogPerplexity(2.5)), found],
        candidates=[found],
        curve=[Entry("uniform", 0.5, predicted=LogPerplexity(4.0, 0.1)), found],
        pareto=Pareto(("params", "kv"), [(0.3, 0.5), (0.2, 0.1)], [3.0, 3.2], [True, False]),
        seconds={"collect": 65.0, "search": 3.0},
        paths={"policy.json": Path("outputs/run/policy.json")},
        signatures={"labels": "0123456789ab"},
    )


def written(report: SearchReport, folder: Path) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_page_needs_no_network(report: SearchReport, tmp_path: Path) -> None:
    text = written(report, tmp_path)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_page_shows_everything(report: SearchReport, tmp_path: Path) -> None:
    page = Page(written(report, tmp_path))
    assert page.tags.count("svg") == 5
    for said in (
        "A search of tiny <at> ratio 0.3", "python search.py model=tiny", "least_squares",
        "12.300 %", "37.500 %", "Kendall 0.876", "1 min 05 s", "outputs/run/policy.json",
        "0123456789ab", "reward", "proposed by the search", "params saved",
    ):  # fmt: skip
        assert said in page.text, said


def test_page_marks_each_number_as_measured_or_predicted(
    report: SearchReport, tmp_path: Path
) -> None:
    words = re.sub(r"\s+", " ", Page(written(report, tmp_path)).text)
    table = words[words.index("Ratio and perplexity") : words.index("Candidates")]
    assert "37.5 % PPF 20.09 measured 3.0000 22.20 predicted 20.13 – 24.48 3.1000" in table
    assert "50.0 % uniform 54.60 predicted 44.88 – 66.42 4.0000" in table


def test_agents_that_do_not_train_have_no_curves(report: SearchReport, tmp_path: Path) -> None:
    page = Page(written(replace(report, history=[]), tmp_path))
    assert "Training of the agent" not in page.text
    assert page.tags.count("svg") == 4


def test_figures_take_the_colours_of_the_page(report: SearchReport, tmp_path: Path) -> None:
    text = written(report, tmp_path)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "var(--ink)" in drawn
    assert "#24292f" not in drawn
    assert "prefers-color-scheme: dark" in text
