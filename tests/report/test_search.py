import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ppf.report import origin
from ppf.report.origin import command_line, command_with, next_command
from ppf.report.scores import Entry, LogPerplexity
from ppf.report.search import search_metrics, search_page
from tests.report.test_html import report  # noqa: F401  (a fixture)


def test_scores_on_proposals_stand_before_those_on_random_policies(report: Any) -> None:  # noqa: F811
    scores = {"equal_ratio": 0.6, "coverage": 0.5, "policies": 40, "intervals": 40}
    sections = {part.name: part for part in search_page(replace(report, proposals=scores)).sections}
    names = list(sections)
    assert names.index("accuracy_on_proposals") < names.index("accuracy")
    assert "50 % of 40 proposals" in sections["accuracy_on_proposals"].warning
    assert "accuracy_on_proposals" not in {part.name for part in search_page(report).sections}


def test_loggers_get_every_policys_perplexities(report: Any) -> None:  # noqa: F811
    metrics = search_metrics(report)
    assert metrics["dense/perplexity"] == pytest.approx(math.exp(2.5))
    assert metrics["PPF/perplexity"] == pytest.approx(math.exp(3.0))
    assert metrics["PPF/predicted_perplexity"] == pytest.approx(math.exp(3.1))
    assert metrics["PPF/ratio"] == 0.375
    assert metrics["seconds/total"] == 68
    assert metrics["evaluations"] == 12
    same = search_metrics(replace(report, entries=[replace(report.entries[0], also=["owl"])]))
    assert same["owl/perplexity"] == same["dense/perplexity"]
    sized = [replace(entry, bytes=2**20) for entry in report.entries]
    assert search_metrics(replace(report, entries=sized))["PPF/matrices_mib"] == 1.0
    more = search_metrics(replace(report, proposals={"equal_ratio": 0.6}))
    assert more["proposals/equal_ratio"] == 0.6


def test_next_commands_keep_what_the_run_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["agent.lr=1", "predictor/encoder=masks", "predictor.steps=3"]
    given = ["model=tiny", "mode=dynamic", "ratios=[0.2]", *own, "paths.outputs=a b"]
    folders = [SimpleNamespace(path="my/conf", provider="command-line")]
    folders.append(SimpleNamespace(path="ppf.conf", provider="main"))
    hydra = SimpleNamespace(
        overrides=SimpleNamespace(task=given), runtime=SimpleNamespace(config_sources=folders)
    )
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    assert next_command("serve", "search=F") == "ppf-serve search=F 'paths.outputs=a b'"
    trusted = ["trust_targets=[my.Agent]", "agent=own"]
    assert next_command("serve", overrides=trusted) == "ppf-serve 'trust_targets=[my.Agent]'"
    changed = {"ratios": None, "agent": None, "predictor": None, "mode": "static", "ratio": "0.3"}
    assert command_with("search", changed) == (
        "ppf-search --config-dir my/conf model=tiny 'paths.outputs=a b' mode=static ratio=0.3"
    )


def test_the_command_of_a_job_has_the_values_that_hydra_gave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hydra = OmegaConf.create(
        {
            "overrides": {"task": [r"out=models/$\{hydra\:job.num\}"]},
            "runtime": {"config_sources": []},
            "job": {"num": 3},
        }
    )
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(origin, "task_overrides", lambda: [r"out=models/$\{hydra\:job.num\}"])
    assert command_line("recover") == "ppf-recover out=models/3"


def test_rules_of_a_dynamic_search_are_drawn_as_predicted(report: Any) -> None:  # noqa: F811
    rows = [
        Entry("uniform", 0.2, LogPerplexity(1.2), LogPerplexity(1.3, 0.1)),
        Entry("flap", 0.2, predicted=LogPerplexity(1.1, 0.1)),
        Entry("PPF", 0.2, LogPerplexity(1.0), LogPerplexity(1.0, 0.1)),
    ]
    found = replace(report, dynamic=True, entries=rows)
    (part,) = (part for part in search_page(found).sections if part.name == "results")
    assert part.table is not None and "only predicted" in part.note and "±" not in part.note
    assert part.table.shown.rows[1] == ["flap", "20.0 %", "", "", "3.00 (2.47 – 3.65)"]
    assert [row[0] for row in found.printed.rows] == ["uniform", "PPF (PPO)"]


def test_a_dynamic_search_has_them_at_each_ratio(report: Any) -> None:  # noqa: F811
    rows = [
        Entry(
            "PPF",
            ratio,
            LogPerplexity(1.0),
            selection=LogPerplexity(2.0, std_error=0.1),
            parameters=9,
        )  # fmt: skip
        for ratio in (0.2, 0.35)
    ]
    metrics = search_metrics(replace(report, dynamic=True, entries=rows))
    assert metrics["PPF/perplexity/0.2"] == metrics["PPF/perplexity/0.35"] == pytest.approx(math.e)
    assert metrics["PPF/selection_perplexity/0.35"] == pytest.approx(math.e**2)
    assert metrics["PPF/selection_perplexity_error/0.2"] == pytest.approx(0.1 * math.e**2)
    assert "PPF/perplexity_error/0.2" not in metrics
    assert metrics["PPF/parameters/0.2"] == 9
