from typing import Any

from ppf.report.evaluation import metrics, page
from ppf.report.publish import flat


def measured(name: str, **more: Any) -> dict[str, Any]:
    """A model's row."""
    scores = {"ratio": 0.3, "nll": 3.0, "perplexity": 20.09, "std_error": None, "asked": 0.3}
    sizes = {"parameters": 1000, "bytes": 2**21, "speed": [], "tasks": {}}
    return {"name": name, **scores, **sizes} | more


def content(*results: dict[str, Any], rounded: bool = False) -> dict[str, Any]:
    """An evaluation.json."""
    about = {"command": "c", "settings": {}, "machine": {}, "next_commands": {}}
    text = {"text": "a text", "windows": 9, "window": 128}
    return text | {"results": results, "rounded": rounded} | about


def test_without_requests_there_is_one_table() -> None:
    shown = page(content(measured("dense"), measured("PPF", std_error=0.01)))
    table = shown.tables["evaluation"]
    assert shown.tables.keys() == {"evaluation"} and table.names[1] == "parameters removed"
    assert table.texts[0][:3] == ["dense", "30.0 %", "20.09"] and "2.0 MiB" in table.texts[0]
    assert table.texts[1][2] == "20.09 ± 0.20"
    assert shown.headline.endswith("of the test part: dense 20.09, PPF 20.09.")
    assert "9 windows of 128 tokens." in shown.sections[0].note
    assert page(content(measured("a"), rounded=True)).tables["evaluation"].names[1] == "bytes saved"


def test_speed_and_tasks_get_tables_of_their_own() -> None:
    names = ("batch", "prompt", "prefill", "decode", "peak_bytes")
    timed = ((1, 64, 1234.5, 20.25, 2**20), (8, 64, 5000, 80, None))
    speeds = [dict(zip(names, row, strict=True)) for row in timed]
    tasks = {"letters": {"acc": 0.5, "acc_stderr": 0.125}, "numbers": {"acc": 1.0}}
    found = content(*(measured(name, speed=speeds, tasks=tasks) for name in ("dense", "PPF")))
    tables = page(found).tables
    assert tables["tasks"].names == ["task", "metric", "dense", "± dense", "PPF", "± PPF"]
    assert tables["tasks"].texts == [
        ["letters", "acc", "0.5000 ± 0.1250", "0.5000 ± 0.1250"],
        ["numbers", "acc", "1.0000", "1.0000"],
        ["mean of 2", "acc", "0.7500", "0.7500"],
    ]
    both = {name: tasks["letters"] for name in ("letters", "others")}
    table = page(content(measured("dense", tasks=both))).tables["tasks"]
    assert table.texts[-1] == ["mean of 2", "acc", "0.5000 ± 0.0884"], "0.125 / √2"
    assert tables["speed"].texts[2] == ["PPF", "1", "1,234.5", "20.2", "1.0 MiB"]
    numbers = flat(metrics(found))
    assert numbers["PPF/perplexity"] == 20.09 and numbers["PPF/tasks/letters/acc"] == 0.5
    assert numbers["PPF/speed/batch_1/decode"] == 20.25 and "PPF/std_error" not in numbers
