import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ppf.report.page import Page, ReportSection, write_page
from ppf.report.publish import flat, publish_file
from ppf.report.search import metrics, page, scores_table
from ppf.report.tables import Table
from ppf.stages.results import rows_of_run
from tests.report.summaries import row, summary


def written(found: Page, folder: Path) -> str:
    write_page(folder / "report.html", found)
    return (folder / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    """What a reader sees."""
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def test_a_page_needs_no_network_and_takes_the_colours_of_the_browser(tmp_path: Path) -> None:
    text = written(page(summary()), tmp_path)
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\((?!#)", text)
    assert all(link[0] == "#" for link in re.findall(r'(?:src|href|action|data)="(.*?)"', text))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "var(--ink)" in drawn and "#24292f" not in drawn
    assert "prefers-color-scheme: dark" in text
    for tag in ("section", "table", "details", "svg", "div"):
        assert len(re.findall(f"<{tag}[ >]", text)) == text.count(f"</{tag}>") > 0


def test_the_page_of_a_search_shows_its_summary(tmp_path: Path) -> None:
    text = written(page(summary()), tmp_path)
    assert text.count("<svg") == 3
    for said in (
        *("tiny <at> ratio 0.3", "python search.py model=tiny", "least_squares", "1 min 05 s"),
        *("proposed by the search", "8 windows of 64 tokens"),
        "12 models were measured; measurements and gradients read 6,144 tokens",
        "python evaluate.py policy=outputs/run/policy.json",
        "Parameters of the whole model: +0.0 %. Perplexity on the labelling part at 37.5 %: dense"
        " 12.18, uniform 24.53, PPF (ppo) 20.09 (+64.9 % against dense).",
        "PPF (ppo) 37.5 % 20.09 +64.9 % −18.1 % 22.20",
        "1.mlp 2 of 4 2 of 4",
    ):
        assert said in words(text), said


def test_text_of_others_cannot_break_a_page(tmp_path: Path) -> None:
    table = Table([{"a < b": "<script>", "n": 1}])
    sections = [ReportSection("T & T", "note", table=table)]
    text = written(
        Page("<title>", "<i>one</i>", sections, {"command": "c", "machine": {"x": "<b>"}}), tmp_path
    )
    assert not any(tag in text for tag in ("<script>", "<b>", "<i>"))
    assert "T & T" in words(text)


def test_the_page_tells_what_the_user_gets() -> None:
    one, two = ({"perplexity": x, "nll": math.log(x)} for x in (9.25, 8.5))
    got = {"part": "selection", "windows": 16, "test": {"perplexity": 8.75}}
    found = page(summary(delivered=got | {"one_shot": one, "sequential": two}))
    assert "Sequential compensation: 8.50 instead of 9.25 on the selection" in found.headline
    last = found.tables["results"].texts[-1]
    assert last[0] == "PPF (ppo), sequential compensation" and {"8.50", "8.75"} < {*last}
    found = page(summary(delivered=got | {"one_shot": two, "sequential": one}))
    assert "Sequential" not in found.headline
    assert found.tables["results"].texts[-1][0] == "PPF (ppo)"


def test_loggers_get_every_policys_perplexities() -> None:
    found = summary(proposals={"equal_ratio": 0.6})
    found["results"][0]["also"] = ["owl"]
    numbers = flat(metrics(found))
    dense, owl = (numbers[f"{name}/measured/perplexity"] for name in ("dense", "owl"))
    assert dense == owl == pytest.approx(math.exp(2.5))
    assert numbers["PPF/predicted/perplexity"] == pytest.approx(math.exp(3.1))
    assert numbers["PPF/ratio"] == 0.375 and numbers["proposals/equal_ratio"] == 0.6
    assert numbers["seconds/total"] == 68 and numbers["token_passes"] == 6144
    assert not [name for name in numbers if "kept" in name or "share" in name]
    rows = [row("PPF", ratio, 1.0) for ratio in (0.2, 0.35)]
    numbers = flat(metrics(summary(mode="dynamic", results=rows)))
    assert numbers["PPF/0.2/measured/nll"] == numbers["PPF/0.35/measured/nll"] == 1.0


def test_the_selection_part_is_compared_if_it_was_measured() -> None:
    selection = {"selection": {"nll": 3.5, "perplexity": 40.0, "std_error": 0.02}}
    rows = [row("uniform", 0.3, 3.5, **selection), row("flap", 0.3, 3.6)]
    selection = {"selection": {"nll": 3.4, "perplexity": 30.0, "std_error": 0.01}}
    table = scores_table(summary(), [*rows, row("PPF", 0.3, 3.4, **selection)])
    assert [*table.heads][2:] == ["labelling part", "selection part", "against uniform"]
    shown = [["40.00 ± 0.80", ""], ["", ""], ["30.00 ± 0.30", "−25.0 %"]]
    assert [line[3:] for line in table.texts] == shown


def test_policies_of_a_budget_of_bytes_have_sizes_and_formats(tmp_path: Path) -> None:
    found = summary()
    for each in found["results"][1:]:
        each |= {"bytes": 3 * 2**20, "types": {"0.mlp": "q4_0", "1.mlp": "f16"}}
    found["results"][0]["bytes"] = 6 * 2**20
    text = words(written(page(found), tmp_path))
    assert "PPF (ppo) 3.0 MiB" in text and "3 of 4, q4_0" in text
    assert rows_of_run(found)[0]["matrices_mib"] == 3.0


def test_an_agents_page_has_each_ratio_and_draws_some() -> None:
    ratios = [n / 20 for n in range(1, 9)]
    rows = [
        row(name, ratio, 3 + ratio, predicted=(3.1, 0.1))
        for ratio in ratios
        for name in ("uniform", "PPF")
    ]
    rows.append(row("flap", 0.2, None, predicted=(1.1, 0.1)))
    found = summary(mode="dynamic", results=[row("dense", 0.0, 2.5), *rows], candidates=[])
    shown = page(found | {"predictor": None, "history": []})
    assert {s.name for s in shown.sections if s.figure} == {"curve", "policy"}
    assert ["flap", "20.0 %", "", "", "", "3.00"] in shown.tables["results"].texts
    assert len(shown.tables["policy"].names) == 1 + 2 * 4
    assert [each["ratio"] for each in rows_of_run(found)] == ratios
    assert "at 25.0 %" in shown.headline


def test_a_rule_of_infinite_loss_is_not_the_best_one() -> None:
    losses = {"uniform": 3.7, "owl": math.inf, "flap": 3.6, "obs_global": 3.5, "PPF": 3.4}
    rows = [row(name, 0.3, loss, predicted=(3.0, 0.1)) for name, loss in losses.items()]
    rows.insert(0, row("dense", 0.0, 2.5))
    known = summary(results=rows, method="ours", published_rules=["owl", "flap"])
    (found,) = rows_of_run(known)
    assert (found["method"], found["ratio"], found["token_passes"]) == ("ours", 0.3, 6144)
    assert found["best_rule_labelling_ppl"] == pytest.approx(math.exp(3.5))
    assert found["best_published_rule_labelling_ppl"] == pytest.approx(math.exp(3.6))
    assert found["uniform_labelling_ppl"] == pytest.approx(math.exp(3.7))
    assert "uniform 40.45, best published rule 36.60, ours 29.96" in page(known).headline
    named = [text[0] for text in page(known).tables["results"].texts]
    assert named == ["dense", "uniform", "owl", "flap (best published rule)", "obs_global", "ours"]


def test_a_summary_is_all_that_a_report_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Any = summary()
    found["results"][1]["measured"] = {"nll": None, "perplexity": None}
    (tmp_path / "summary.json").write_text(json.dumps(found))
    publish_file(tmp_path / "summary.json", "search", [])
    assert "PPF (ppo)" in (tmp_path / "report.html").read_text()
    said = capsys.readouterr().out
    assert "uniform inf" in said and str(tmp_path / "report.html") in said
    assert said.splitlines()[-1] == f"Measure it: {found['next_commands']['Measure it']}"
