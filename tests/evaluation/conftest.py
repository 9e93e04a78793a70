import json
from pathlib import Path

import pytest

QUESTIONS = [
    {"question": f"Which letter comes after {a}?", "choices": [b, "x", "y"], "answer": 0}
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A multiple-choice task of lm-evaluation-harness with its data beside it."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data, task = folder / "letters.json", folder / "letters.yaml"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    task.write_text(f"""
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    return task
