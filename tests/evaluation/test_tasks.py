import json
from pathlib import Path
from typing import Any

import pytest

from ppf.errors import PPFError
from ppf.evaluation.tasks import Tasks
from ppf.llm.sources import byte_tokenizer
from tests.checkpoints import bos_tokenizer
from tests.evaluation.conftest import QUESTIONS
from tests.tiny import TinySetup

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_local_task_runs_dense_and_pruned(tiny: TinySetup, task_file: Path) -> None:
    tasks = Tasks([str(task_file)], limit=None, batch=4)
    pruner, found = tiny.pruner(), []
    for kept in (tiny.space.dense.tolist(), [1] * len(tiny.space)):
        with pruner.at(kept) as model:
            found.append(tasks.scores(model, tiny.lm.tokenizer)["letters"])
    for scores in found:
        assert 0 <= scores["acc"] <= 1 and scores["acc"] * len(QUESTIONS) % 1 == 0
        assert "acc_stderr" in scores
    limited = Tasks([str(task_file.parent)], limit=2, batch=4)  # a folder of tasks
    assert limited.scores(tiny.lm.model, tiny.lm.tokenizer)["letters"]["acc"] in (0, 0.5, 1)


def test_prompts_begin_with_bos_if_the_tokenizer_adds_it(tiny: TinySetup, task_file: Path) -> None:
    prompts: list[int] = []

    def note(module: Any, inputs: Any, named: dict[str, Any]) -> None:
        prompts.extend((inputs[0] if inputs else named["input_ids"])[:, 0].tolist())

    tiny.lm.model.register_forward_pre_hook(note, with_kwargs=True)
    tasks, (letter,) = Tasks([str(task_file)], limit=1, batch=1), byte_tokenizer()("W").input_ids
    for tokenizer, first in ((byte_tokenizer(), letter), (bos_tokenizer(), 0)):
        prompts.clear()
        tasks.scores(tiny.lm.model, tokenizer)
        assert set(prompts) == {first}


def test_items_of_a_file_are_a_task(tiny: TinySetup, tmp_path: Path) -> None:
    def rows(*answers: object) -> str:
        own = [{"question": q["question"], "options": q["choices"]} for q in QUESTIONS]
        found = [row | {"answer": answer} for row, answer in zip(own, answers, strict=False)]
        return "\n".join(map(json.dumps, found))

    (tmp_path / "numbers.jsonl").write_text(rows(0, 1, 2, 0))
    (tmp_path / "texts.jsonl").write_text(rows("b", "x", "y", "e"))
    tasks = Tasks([str(tmp_path)], limit=None, batch=4, fewshot=1)
    found = tasks.scores(tiny.lm.model, tiny.lm.tokenizer)
    assert found["numbers"] == found["texts"], "numbers and texts name the same options"
    assert {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"} <= found["numbers"].keys()
    task = tasks._tasks[0]
    doc, own = list(task.test_docs())[1], "Question: Which letter comes after b?\nAnswer:"
    assert task.doc_to_text(doc | {"passage": "A text."}) == f"A text.\n{own}"
    prompt = task.fewshot_context(doc, 1)
    assert prompt.endswith(f"\n\n{own}") and prompt.count("Question") == 2


@pytest.mark.parametrize("content", [None, '{"question": "a", "answer": 0}'])
def test_a_file_without_items_is_named_before_the_work_starts(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "items.jsonl"
    if content:
        file.write_text(content)
    with pytest.raises(PPFError, match="cannot be loaded .*of {question, options, answer}"):
        Tasks([str(file)], limit=None, batch=1)
