import pytest

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.server.completion import Completion, StoppedError
from ppf.server.engine import Engine
from ppf.server.requests import ChatRequest, CompletionRequest, GenerationRequest


def completion(model: DynamicModel, longest: int = 8192, **asked: object) -> Completion:
    request = {"prompt": "Hello", "max_tokens": 900, "temperature": 0.0, "pruning_ratio": 0.2}
    return prepared(model, CompletionRequest.model_validate(request | asked), longest)


def prepared(model: DynamicModel, request: GenerationRequest, longest: int) -> Completion:
    read, emit = (lambda: [*b"Hello"]), (lambda piece: None)
    made = Completion(model, request, read, emit, longest=longest)
    made.prepare()
    return made


@pytest.fixture
def engine(model: DynamicModel) -> Engine:
    model.lm.model.generation_config.eos_token_id = None
    return Engine(model, sequences=4, turn_seconds=0.1)


def test_a_stopped_completion_writes_no_further_and_frees_the_model(
    model: DynamicModel, engine: Engine
) -> None:
    stopped = completion(model)
    pieces: list[object] = []

    def emit(piece: object) -> None:
        pieces.append(piece)
        stopped.stop()

    stopped.emit = emit
    with pytest.raises(StoppedError):
        engine.submit(stopped).result(20)
    assert len(pieces) == 1 and stopped.new_tokens < 20
    after = completion(model, max_tokens=1)
    engine.submit(after).result(20)
    with model.at(0.1):  # waits until the engine has left the model
        pass
    assert model.ratio == 0 and not model.lm.adapter.layers(model.lm.model)[0]._forward_pre_hooks
    model.set_ratio(0.2)


def test_a_prefill_stops_before_the_next_layer(model: DynamicModel, engine: Engine) -> None:
    stopped = completion(model)
    seen: list[int] = []
    for number, layer in enumerate(model.lm.adapter.layers(model.lm.model)):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    model.lm.adapter.layers(model.lm.model)[1].register_forward_hook(lambda *_: stopped.stop())
    with pytest.raises(StoppedError):
        engine.submit(stopped).result(20)
    assert seen == [0, 1]


def test_a_token_without_embedding_is_refused(model: DynamicModel) -> None:
    model.lm.tokenizer.embedded = 100
    with pytest.raises(PPFError, match="the prompt has the token ., which the model does not"):
        completion(model)


def test_too_few_positions_are_refused_before_any_work(model: DynamicModel) -> None:
    with pytest.raises(PPFError, match="more than the model's 1024 positions"):
        completion(model, max_tokens=1020)


def test_a_text_is_not_longer_than_the_server_allows(model: DynamicModel) -> None:
    with pytest.raises(PPFError, match=r"more than limits\.context=64: shorten the prompt"):
        completion(model, longest=64, max_tokens=64)
    assert completion(model, longest=64, max_tokens=59).most_tokens == 59
    chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hello"}]})
    with pytest.raises(PPFError, match=r"5 tokens, which leaves none of limits\.context=5 for an"):
        prepared(model, chat, 5)
