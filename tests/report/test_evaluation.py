import re
from io import StringIO

from rich.console import Console

from ppf.evaluation.results import Evaluation, ModelResult, Speed
from ppf.report.evaluation import (
    evaluation_metrics,
    evaluation_page,
    evaluation_tables,
    print_evaluation,
)


def measured(name: str, **more: object) -> ModelResult:
    return ModelResult(name, 0.3, 3.0, 20.09, 1000, 2**21, **more)


def printed(evaluation: Evaluation) -> str:
    target = StringIO()
    print_evaluation(evaluation, target=Console(file=target))
    return target.getvalue()


def test_without_requests_there_is_one_table() -> None:
    found = Evaluation("a text", 4, 128, 128, [measured("dense")])
    assert evaluation_tables(found).keys() == {"evaluation"}
    said = printed(found)
    assert re.search("dense +30.0 %", said) and "2.0 MiB" in said
    assert evaluation_tables(found)["evaluation"].names[1] == "parameters removed"
    assert "4 windows of 128 tokens." in said


def test_speed_and_tasks_get_tables_of_their_own() -> None:
    speeds = [Speed(1, 64, 1234.5, 20.25, 2**20), Speed(8, 64, 5000, 80, None)]
    tasks = {"letters": {"acc": 0.5, "acc_stderr": 0.125}}
    models = [measured(name, speed=speeds, tasks=tasks) for name in ("dense", "PPF")]
    found = Evaluation("a text", 9, 128, 64, models)
    table = evaluation_tables(found)["tasks"]
    assert table.names == ["task", "metric", "dense", "PPF"]
    assert table.texts == [
        ["letters", "acc", "0.5000", "0.5000"],
        ["letters", "acc_stderr", "0.1250", "0.1250"],
    ]
    speed = evaluation_tables(found)["speed"].texts
    assert speed[2] == ["PPF", "1", "1,234.5", "20.2", "1.0 MiB"]
    assert "windows of 128 tokens, 64 apart." in printed(found)


def test_standard_errors_are_shown_where_they_are_known() -> None:
    found = Evaluation("a text", 4, 128, 128, [measured("dense", std_error=0.01)])
    assert "20.09 ± 0.20" in printed(found)
    assert "±" not in printed(Evaluation("a text", 4, 128, 128, [measured("dense")]))


def test_the_page_says_what_was_measured_on_what() -> None:
    models = [measured(name, speed=[Speed(1, 64, 10, 20, None)]) for name in ("dense", "PPF")]
    found = Evaluation("a text", 9, 128, 128, models)
    page = evaluation_page(
        found, title="t", command="c", settings={}, machine={}, next_commands={"Next": "d"}
    )
    assert page.tables.keys() == {"evaluation", "speed"}
    assert page.headline[-1] == "Measured on the test part of a text: 9 windows of 128 tokens."
    metrics = evaluation_metrics(found)
    assert metrics["PPF/test_perplexity"] == 20.09
    assert metrics["PPF/decode_tokens_per_second/batch_1"] == 20
