"""The routes: OpenAI's chats, completions and models, health, policies, and the web page."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi_offline import FastAPIOffline

from ppf.evaluation.size import parameters
from ppf.report.scores import LogPerplexity
from ppf.runtime import DynamicModel
from ppf.server.answers import Answer, ChatFormat, Format, TextFormat
from ppf.server.completion import Delta, Position
from ppf.server.errors import FAILURE, add_handlers, content
from ppf.server.guard import Guard
from ppf.server.prompts import chat_tokens, has_template, text_tokens
from ppf.server.requests import ChatRequest, CompletionRequest, GenerationRequest
from ppf.server.scheduler import Generation, Scheduler


def create_app(
    name: str,
    scheduler: Scheduler,
    *,
    hosts: Sequence[str],
    api_key: str | None,
    template: str | None,
) -> FastAPI:
    """Creates the application that serves one model.

    All routes are coroutines, so that the others answer at once while completions wait.

    Args:
        name: name of the model for clients.
        scheduler: generates the completions.
        hosts: allowed values of the Host header; "*" allows any.
        api_key: the key that requests to /v1 must send; None: no key is needed.
        template: a chat template; None: the tokenizer's.
    """
    # Its page /docs needs no internet.
    app = FastAPIOffline(title="PPF", summary="One model at any pruning ratio.", redoc_url=None)
    add_handlers(app)
    app.add_middleware(Guard, api_key=api_key, body_mib=scheduler.limits.body_mib)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    model, tokenizer = scheduler.model, scheduler.model.lm.tokenizer
    prunable = model.space.total / parameters(model.lm.model)
    page = (files("ppf.server") / "templates" / "page.html").read_text(encoding="utf-8")
    entry = {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "ppf",
        "pruning_ratios": model.ratios,
        "compensation": model.compensation,
        "chat": has_template(tokenizer, template),
    }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{model_name:path}")
    async def one_model(model_name: str) -> dict[str, Any]:
        check_name(model_name)
        return entry

    @app.get("/v1/policies")
    async def policy(pruning_ratio: float) -> dict[str, Any]:
        return await run_in_threadpool(_policy, model, pruning_ratio, prunable)

    @app.post("/v1/completions", response_model=None)
    async def complete(
        asked: CompletionRequest, request: Request
    ) -> StreamingResponse | dict[str, Any]:
        read = partial(text_tokens, tokenizer, asked.prompt)
        return await answer(asked, read, TextFormat(), request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> StreamingResponse | dict[str, Any]:
        read = partial(chat_tokens, tokenizer, asked, template)
        return await answer(asked, read, ChatFormat(), request)

    async def answer(
        asked: GenerationRequest,
        read: Callable[[], list[int]],
        written: Format,
        request: Request,
    ) -> StreamingResponse | dict[str, Any]:
        check_name(asked.model or name)
        head = {
            "id": f"{written.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": name,
        }
        generation = scheduler.start(asked, read, request)
        answer = Answer(written, generation.completion, head)
        # Waits for the first piece: until the answer starts, an error can still set its status.
        first = await anext(generation)
        if asked.stream:
            events = _events(answer, first, generation, asked.stream_options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        found = [first, *[piece async for piece in generation]]
        return answer.whole(piece for piece in found if isinstance(piece, Delta))

    def check_name(asked: str) -> None:
        if asked != name:
            raise HTTPException(404, f"this server has no model '{asked}': give model='{name}'.")

    return app


def _policy(model: DynamicModel, ratio: float, prunable: float) -> dict[str, Any]:
    """The answer of /v1/policies.

    Args:
        prunable: prunable parameters as a share of all.
    """
    kept = model.policy(ratio)
    achieved = float(model.space.ratio(torch.tensor(kept)))
    return {
        "pruning_ratio": achieved,
        "of_all_parameters": achieved * prunable,
        "predicted_perplexity": _perplexity(model.policies.predicted(ratio)),
        "sites": [
            {"layer": s.layer, "block": s.block, "kept": k, "units": s.units}
            for s, k in zip(model.space.sites, kept, strict=True)
        ],
    }


async def _events(
    answer: Answer, first: Position | Delta, rest: Generation, counts: bool
) -> AsyncIterator[str]:
    """Server-sent events: pieces of text, then OpenAI's end mark, or else an error.

    A place in the queue is a comment line, which OpenAI's clients ignore.
    """

    def line(piece: Position | Delta) -> str:
        if isinstance(piece, Position):
            return f": place in the queue: {piece.place}\n\n"
        return _event(answer.part(piece))

    try:
        yield line(first)
        async for piece in rest:
            yield line(piece)
    except HTTPException as error:
        yield _event(content(error.status_code, error.detail))
    except Exception:
        yield _event(content(500, FAILURE))
        raise
    else:
        if counts:
            yield _event(answer.last())
        yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _perplexity(prediction: tuple[float, float] | None) -> dict[str, Any] | None:
    """Predicted perplexity with its 95 % interval; None without a prediction."""
    if prediction is None:
        return None
    score = LogPerplexity(*prediction)
    return {"mean": score.perplexity, "interval_95": score.interval}
