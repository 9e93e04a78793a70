"""Which completions are generated together, in which order, and how they end."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ppf.errors import PPFError
from ppf.runtime import DecodingBatch, DynamicModel
from ppf.server.completion import Completion, Delta, StoppedError
from ppf.server.engine import Engine
from ppf.server.requests import CompletionRequest

SECONDS = 120


class Log:
    """All pieces of all completions, in the order in which they came."""

    def __init__(self, model: DynamicModel) -> None:
        self.model, self.entries = model, list[tuple[str, Delta]]()

    def completion(
        self, name: str, ratio: float = 0.0, longest: int = 8192, **asked: Any
    ) -> Completion:
        request = {"prompt": name, "max_tokens": 12, "temperature": 0, "pruning_ratio": ratio}
        checked = CompletionRequest.model_validate(request | asked)
        made = Completion(
            self.model, checked, lambda piece: self.entries.append((name, piece)), longest=longest
        )
        made.prepare()
        return made

    def text(self, name: str) -> str:
        return "".join(delta.text for n, delta in self.entries if n == name)

    def first(self, name: str) -> int:
        return next(i for i, (n, _) in enumerate(self.entries) if n == name)

    def last(self, name: str) -> int:
        return max(i for i, (n, _) in enumerate(self.entries) if n == name)


@pytest.fixture
def log(model: DynamicModel) -> Iterator[Log]:
    """Generations take 2 ms a token at least, and never end early."""
    model.lm.model.generation_config.eos_token_id = None
    with ExitStack() as hooks:
        lm = model.lm.model
        hooks.enter_context(lm.register_forward_hook(lambda *_: time.sleep(0.002)))
        yield Log(model)


def run(engine: Engine, *completions: Completion) -> None:
    for future in [engine.submit(completion) for completion in completions]:
        future.result(SECONDS)


def test_completions_in_one_batch_have_the_texts_that_they_have_alone(
    log: Log, model: DynamicModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, step = list[int](), DecodingBatch.step

    def counted(batch: DecodingBatch, tokens: Any) -> Any:
        sizes.append(len(tokens))
        return step(batch, tokens)

    monkeypatch.setattr(DecodingBatch, "step", counted)
    names, expected = ("a", "Hello", "what is this"), {}
    for ratio in (0.0, 0.4):
        with model.at(ratio):
            for name in names:
                options = {"max_new_tokens": 12, "do_sample": False}
                expected[name, ratio] = model.complete(name, **options)
        log.entries.clear()
        engine = Engine(model, sequences=4, turn_seconds=1)
        run(engine, *(log.completion(name, ratio) for name in names))
        assert all(log.text(name) == expected[name, ratio] for name in names)
        assert max(sizes) == 3 and len(sizes) < 3 * 12, "they were not generated together"
        sizes.clear()


def test_ratios_take_turns(log: Log, model: DynamicModel) -> None:
    engine = Engine(model, sequences=4, turn_seconds=0.01)
    long = [log.completion(f"long{r}", r, max_tokens=60) for r in (0.0, 0.4)]
    futures = [engine.submit(completion) for completion in long]
    short = log.completion("short", 0.2, max_tokens=2)
    engine.submit(short).result(SECONDS)
    assert not any(future.done() for future in futures)
    for future in futures:
        future.result(SECONDS)
    owners = [name for name, _ in log.entries if name != "short"]
    changes = sum(a != b for a, b in zip(owners[:-1], owners[1:], strict=True))
    assert changes > 4


def test_completions_beyond_the_limit_wait_in_order(log: Log, model: DynamicModel) -> None:
    engine = Engine(model, sequences=2, turn_seconds=1)
    names = ["a", "b", "c", "d"]
    run(engine, *(log.completion(n, r) for n, r in zip(names, (0, 0, 0.4, 0), strict=True)))
    assert min(log.last("a"), log.last("b")) < min(log.first("c"), log.first("d"))


def test_a_stopped_completion_writes_no_further_and_frees_the_model(
    log: Log, model: DynamicModel
) -> None:
    engine, stopped = Engine(model, sequences=4, turn_seconds=0.1), log.completion("a")
    seen = list[object]()

    def emit(piece: object) -> None:
        seen.append(piece)
        stopped.stop()

    stopped.emit = emit
    with pytest.raises(StoppedError):
        engine.submit(stopped).result(SECONDS)
    assert len(seen) == 1 and stopped.new_tokens < 3
    run(engine, log.completion("b", max_tokens=1))
    assert not model.lm.adapter.layers(model.lm.model)[0]._forward_pre_hooks


def test_a_prefill_stops_before_the_next_layer(log: Log, model: DynamicModel) -> None:
    stopped, seen = log.completion("a"), list[int]()
    layers = model.lm.adapter.layers(model.lm.model)
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    layers[1].register_forward_hook(lambda *_: stopped.stop())
    with pytest.raises(StoppedError):
        Engine(model, sequences=4, turn_seconds=0.1).submit(stopped).result(SECONDS)
    assert seen == [0, 1]


def test_a_prompt_that_the_model_cannot_continue_is_refused(log: Log, model: DynamicModel) -> None:
    with pytest.raises(PPFError, match="together at most 1024: change the prompt or lower max_tok"):
        log.completion("Hello", max_tokens=1020)
    with pytest.raises(PPFError, match="5 tokens and its answer may have 60, but together at most"):
        log.completion("Hello", longest=64, max_tokens=60)
    assert log.completion("Hello", longest=64, max_tokens=59).most_tokens == 59
    model.lm.tokenizer.embedded = 50
    with pytest.raises(PPFError, match="the prompt has the token ., which the model does not"):
        log.completion("Hello")
