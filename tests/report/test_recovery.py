import math
from typing import Any

import pytest

from ppf.report.publish import flat
from ppf.report.recovery import metrics, page


def score(pruned: float, recovered: float, ratio: float = 0.3) -> dict[str, Any]:
    """A row of summary.json, from perplexities; the dense model has 20."""
    losses = {"dense": math.log(20), "pruned": math.log(pruned), "recovered": math.log(recovered)}
    lost, won = losses["pruned"] - losses["dense"], losses["pruned"] - losses["recovered"]
    return {"ratio": ratio, **losses, "won_back": won / lost if lost > 0 else None}


def content(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A summary.json."""
    about = {"title": "tiny", "command": "c", "text": "a text", "settings": {"loss": "kl"}}
    found = {"results": results, "test": [], "curve": [(100, 3.4), (300, 3.2)]}
    return {**about, "machine": {}, "next_commands": {"Next": "d"}, **found, **more}


def test_each_part_has_a_row_for_each_ratio_and_the_mean_change_is_told() -> None:
    shown = page(content(score(40, 20, 0.2), score(80, 80, 0.5)))
    assert "by −29.3 %" in shown.headline and shown.tables.keys() == {"validation"}
    found = ["20.0 %", "20.00", "40.00", "20.00", "−50.0 %", "100.0 %"]
    assert shown.tables["validation"].texts[0] == found
    assert shown.sections[-1].figure.axes[0].lines[0].get_xdata().tolist() == [100, 300]
    shown = page(content(score(40, 30), test=[score(50, 45)], curve=[]))
    assert not any(section.figure for section in shown.sections)
    assert shown.tables["test"].texts[0][2:4] == ["50.00", "45.00"]


def test_metrics_name_part_and_ratio() -> None:
    one = flat(metrics(content(score(40, 30), test=[score(50, 45)])))
    assert one["validation/recovered"] == math.log(30) and one["test/pruned"] == math.log(50)
    assert one["validation/won_back"] == pytest.approx(math.log(40 / 30) / math.log(2))
    several = flat(metrics(content(score(40, 30, 0.2), score(20, 18, 0.5))))
    assert "validation/0.2/won_back" in several and "validation/0.5/won_back" not in several
