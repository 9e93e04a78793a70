import threading
from typing import Any

import pytest
import torch

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.space import uniform

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
PROMPT = torch.tensor([[5, 6, 7, 8]])


def greedy(model: DynamicModel, **options: Any) -> list[int]:
    options = {"attention_mask": torch.ones_like(PROMPT)} | GREEDY | options
    return model.generate(PROMPT, **options)[0].tolist()


def test_any_way_to_a_ratio_gives_the_same_text(model: DynamicModel) -> None:
    dense = greedy(model)
    model.set_ratio(0.4)
    assert model.pruner.kept == uniform(model.space, torch.tensor([0.4]))[0].tolist()
    assert 0.4 <= model.ratio < 0.5
    pruned = greedy(model)
    for ratio in (0.2, 0.6, 0.4):
        model.set_ratio(ratio)
    assert greedy(model) == pruned != dense
    model.set_ratio(0.0)
    assert greedy(model) == dense and model.ratio == 0


def test_at_holds_inside_its_block_only(model: DynamicModel) -> None:
    model.set_ratio(0.2)
    outside = model.pruner.kept
    with pytest.raises(RuntimeError), model.at(0.5) as inner:
        assert inner.ratio >= 0.5
        with model.at(0.1):
            assert model.ratio < 0.2
        assert model.ratio >= 0.5
        raise RuntimeError
    assert model.pruner.kept == outside


def test_a_ratio_outside_the_space_is_refused(model: DynamicModel) -> None:
    for ratio in (-0.1, 1.0, 1.4):
        with pytest.raises(PPFError, match="out of range"):
            model.set_ratio(ratio)


def test_threads_never_see_a_foreign_ratio(model: DynamicModel) -> None:
    ratios = (0.0, 0.2, 0.4, 0.6)
    expected = {}
    for ratio in ratios:
        with model.at(ratio):
            expected[ratio] = greedy(model)
    wrong: list[float] = []

    def work(ratio: float) -> None:
        for _ in range(3):
            with model.at(ratio):
                if greedy(model) != expected[ratio]:
                    wrong.append(ratio)

    threads = [threading.Thread(target=work, args=(ratio,)) for ratio in ratios]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and model.ratio == 0
