import copy
import inspect
import math
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from torch import Tensor
from transformers import LlamaForCausalLM, StoppingCriteria

import ppf
from ppf.errors import PPFError
from ppf.evaluation.perplexity import Piece, mean_nll, pieces_nll, sliding
from ppf.runtime import DynamicModel, UniformPolicies
from ppf.space import uniform
from tests.checkpoints import bos_tokenizer
from tests.sentencepiece import sentencepiece_form
from tests.tiny import TinySetup

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
PROMPT = torch.tensor([[5, 6, 7, 8]])
# The name of the argument depends on the version of transformers.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(LlamaForCausalLM.forward).parameters
)


def greedy(model: DynamicModel, **options: Any) -> list[int]:
    options = {"attention_mask": torch.ones_like(PROMPT)} | GREEDY | options
    return model.generate(PROMPT, **options)[0].tolist()


def test_a_ratio_is_the_policys_and_zero_is_dense(model: DynamicModel) -> None:
    model.set_ratio(0.4)
    assert model.kept == uniform(model.space, torch.tensor([0.4]))[0].tolist()
    assert 0.4 <= model.ratio < 0.5
    model.set_ratio(0.0)
    assert model.kept == model.space.dense.tolist() and model.ratio == 0


def test_any_way_to_a_ratio_gives_the_same_text(model: DynamicModel) -> None:
    dense = greedy(model)
    model.set_ratio(0.4)
    pruned = greedy(model)
    for ratio in (0.2, 0.6, 0.4):
        model.set_ratio(ratio)
    assert greedy(model) == pruned != dense
    model.set_ratio(0.0)
    assert greedy(model) == dense


def test_at_holds_inside_its_block_only(model: DynamicModel) -> None:
    model.set_ratio(0.2)
    outside = model.kept
    with pytest.raises(RuntimeError), model.at(0.5) as inner:
        assert inner.ratio >= 0.5
        with model.at(0.1):
            assert model.ratio < 0.2
        assert model.ratio >= 0.5
        raise RuntimeError
    assert model.kept == outside


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.4])
def test_a_ratio_outside_the_space_is_refused(model: DynamicModel, ratio: float) -> None:
    with pytest.raises(PPFError, match="out of range"):
        model.set_ratio(ratio)


def test_complete_returns_what_was_added(model: DynamicModel) -> None:
    tokens = model.lm.tokenizer("Hello", return_tensors="pt")
    whole = model.generate(**tokens, **GREEDY)[0]
    assert model.complete("Hello", **GREEDY) == model.lm.tokenizer.decode(whole[5:])


def test_what_was_added_keeps_its_first_space(
    model: DynamicModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = sentencepiece_form(normalizers.Prepend("▁"))
    model.lm.tokenizer = tokenizer
    both = torch.tensor([tokenizer("cat the").input_ids])
    monkeypatch.setattr(model, "generate", lambda **given: both)
    assert model.complete("cat") == " the"


def test_perplexity_is_that_of_the_pruned_model(model: DynamicModel) -> None:
    text = "what a text " * 8  # three windows of 32 bytes
    ids = model.lm.tokenizer(text, return_tensors="pt")["input_ids"][0]
    with model.at(0.3):
        nll = torch.tensor(mean_nll(model.lm.model, ids.view(3, 32), batch=3))
        assert model.perplexity(text) == pytest.approx(float(nll.exp()), rel=1e-5)
        overlapping = sliding(ids, window=16, stride=8)
        nll = torch.tensor(pieces_nll(model.lm.model, overlapping, batch=3))
        found = model.perplexity(text, window=16, stride=8)
        assert found == pytest.approx(float(nll.exp()), rel=1e-5)


def test_perplexity_begins_every_window_with_the_tokenizers_bos(model: DynamicModel) -> None:
    text = "what a text!" * 8  # three windows of 31 bytes and a rest of 3
    model.lm.tokenizer = bos_tokenizer()
    ids = torch.tensor(model.lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    windows = torch.cat([torch.zeros(3, 1, dtype=torch.long), ids[:93].view(3, 31)], 1)
    rest = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids[None, 93:]], 1)
    nll = pieces_nll(model.lm.model, [Piece(windows, 1), Piece(rest, 1)], batch=3)
    assert model.perplexity(text) == pytest.approx(math.exp(nll), rel=1e-5)


def test_a_kv_cache_goes_on_at_its_own_ratio(model: DynamicModel) -> None:
    model.set_ratio(0.4)
    first = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), return_dict_in_generate=True, **GREEDY
    )
    cache, ids = first.past_key_values, first.sequences
    more = {"attention_mask": torch.ones_like(ids)} | GREEDY
    expected = model.generate(ids, **more)
    assert torch.equal(model.generate(ids, **{CACHE: copy.deepcopy(cache)}, **more), expected)

    model.set_ratio(0.2)
    with pytest.raises(PPFError, match="filled at another pruning ratio"):
        model.generate(ids, **{CACHE: copy.deepcopy(cache)}, **more)
    model.set_ratio(0.4)
    assert torch.equal(model.generate(ids, **{CACHE: cache}, **more), expected)


def test_a_kv_cache_of_a_forward_pass_is_marked_too(model: DynamicModel) -> None:
    cache = model.lm.model(PROMPT, use_cache=True)[CACHE]
    other = model.lm.model(PROMPT, use_cache=True, return_dict=False)[1]
    model.lm.model(PROMPT, **{CACHE: cache})
    model.set_ratio(0.3)
    for filled in (cache, other):
        with pytest.raises(PPFError, match="KV cache"):
            model.lm.model(PROMPT, **{CACHE: filled})


def test_a_kv_cache_of_another_model_is_refused(tiny: TinySetup) -> None:
    cache = tiny.lm.model(PROMPT, use_cache=True)[CACHE]
    policies = UniformPolicies(tiny.space)
    model = DynamicModel(tiny.pruner(), policies, ratios=[0.0], window=32)
    with pytest.raises(PPFError, match="by another model"):
        model.lm.model(PROMPT, **{CACHE: cache})


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


class Pause(StoppingCriteria):
    """Lets a generation wait in its middle."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        self.reached.set()
        assert self.go_on.wait(10)
        return torch.zeros(len(ids), dtype=torch.bool)


def test_set_ratio_waits_for_a_generation_of_another_thread(model: DynamicModel) -> None:
    pause, dense = Pause(), greedy(model)
    texts: list[list[int]] = []
    generating = threading.Thread(
        target=lambda: texts.append(greedy(model, stopping_criteria=[pause]))
    )
    setting = threading.Thread(target=model.set_ratio, args=(0.5,))
    generating.start()
    assert pause.reached.wait(10)
    setting.start()
    time.sleep(0.05)
    assert model.ratio == 0
    pause.go_on.set()
    generating.join()
    setting.join()
    assert texts == [dense] and model.ratio >= 0.5


def test_bias_terms_cost_little_memory(model: DynamicModel) -> None:
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in model.lm.model.parameters()}
    biases = sum(level.biases.nbytes for level in model.pruner.bank.levels)
    assert biases < 0.1 * sum(weights.values())
    model.set_ratio(0.5)
    views = {p.untyped_storage().data_ptr() for p in model.lm.model.parameters() if p.dim() > 1}
    assert views <= weights.keys()


def test_the_package_offers_it_without_importing_it() -> None:
    assert ppf.DynamicModel is DynamicModel
    code = "import sys, ppf; assert not {'torch', 'ppf.runtime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
