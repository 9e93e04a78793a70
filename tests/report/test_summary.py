"""The rows that a search gives to the table of a sweep."""

import json
from pathlib import Path

from ppf.report.summary import summary_rows


def test_a_rule_of_infinite_loss_is_not_the_best_one(tmp_path: Path) -> None:
    losses = {"uniform": 40.0, "owl": None, "flap": 35.0, "PPF": 30.0}
    results = [
        {"policy": name, "ratio": 0.3, "measured": {"nll": None, "perplexity": perplexity}}
        for name, perplexity in losses.items()
    ]
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"results": results}))
    (row,) = summary_rows(summary)
    assert (row["labelling_ppl"], row["best_rule_labelling_ppl"]) == (30.0, 35.0)
