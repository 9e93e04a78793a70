"""The routes: OpenAI's chats, completions and models, health, policies, and the web page."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from hmac import compare_digest
from importlib.resources import files
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from ppf.evaluation import LogPerplexity
from ppf.evaluation.size import parameters
from ppf.runtime import DynamicModel
from ppf.server.answers import Answer
from ppf.server.completion import Delta
from ppf.server.errors import FAILURE, add_handlers, content
from ppf.server.requests import AnyRequest, ChatRequest, CompletionRequest
from ppf.server.scheduler import Scheduler

Reply = StreamingResponse | dict[str, Any]


def create_app(
    name: str, scheduler: Scheduler, *, hosts: Sequence[str], api_key: str | None
) -> FastAPI:
    """Creates the application that serves one model.

    All routes are coroutines, so that the others answer at once while completions wait.

    Args:
        name: name of the model for clients.
        scheduler: generates the completions.
        hosts: allowed values of the Host header; "*" allows any.
        api_key: the key that requests to /v1 must send; None: no key is needed.
    """
    # Its page /docs needs no internet.
    app = FastAPIOffline(title="PPF", summary="One model at any pruning ratio.", redoc_url=None)
    add_handlers(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=_LARGEST_BODY)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    v1 = APIRouter(prefix="/v1", dependencies=[_needs(api_key)] if api_key else [])
    model = scheduler.model
    page = (files("ppf.server") / "templates" / "page.html").read_text(encoding="utf-8")
    entry = {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "ppf",
        "pruning_ratios": model.ratios,
        "compensation": model.compensation,
        "chat": model.lm.tokenizer.chat_template is not None,
    }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @v1.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @v1.get("/models/{model_name:path}")
    async def one_model(model_name: str) -> dict[str, Any]:
        check_name(model_name)
        return entry

    @v1.get("/policies")
    async def policy(pruning_ratio: float) -> dict[str, Any]:
        return await run_in_threadpool(_policy, model, pruning_ratio)

    @v1.post("/completions", response_model=None)
    async def complete(asked: CompletionRequest, request: Request) -> Reply:
        return await answer(asked, request)

    @v1.post("/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> Reply:
        return await answer(asked, request)

    async def answer(asked: AnyRequest, request: Request) -> Reply:
        check_name(asked.model or name)
        completion, pieces = scheduler.start(asked, request)
        written = Answer(completion, name)
        try:
            # Waits for the first piece: until the answer starts, an error can still set its status.
            first = await anext(pieces)
            if not asked.stream:
                return written.whole([first, *[piece async for piece in pieces]])
        except asyncio.CancelledError:  # by uvicorn, of what is open some seconds after a signal
            raise HTTPException(503, "the server stops.") from None
        events = _events(written, first, pieces, asked.stream_options.include_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    def check_name(asked: str) -> None:
        if asked != name:
            raise HTTPException(404, f"this server has no model '{asked}': give model='{name}'.")

    app.include_router(v1)
    return app


def _needs(api_key: str) -> Any:
    """A dependency of routes, which refuses requests without the key."""

    async def check(
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        key = sent.credentials.encode("latin-1") if sent else b""
        if not compare_digest(key, api_key.encode()):
            sentence = "this server needs an API key: send the header `Authorization: Bearer KEY`."
            raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})

    return Depends(check)


def _policy(model: DynamicModel, ratio: float) -> dict[str, Any]:
    """The answer of /v1/policies: the units of each site, and the perplexity if it is predicted."""
    kept = model.policy(ratio)
    achieved = float(model.space.ratio(torch.tensor(kept)))
    predicted = None
    if prediction := model.policies.predicted(ratio):
        score = LogPerplexity(*prediction).record()
        predicted = {"mean": score["perplexity"], "interval_95": score["interval_95"]}
    return {
        "pruning_ratio": achieved,
        "of_all_parameters": achieved * model.space.total / parameters(model.lm.model),
        "predicted_perplexity": predicted,
        "sites": [
            {"layer": s.layer, "block": s.kind, "kept": k, "units": s.units}
            for s, k in zip(model.space.sites, kept, strict=True)
        ],
    }


async def _events(
    answer: Answer, first: Delta, rest: AsyncIterator[Delta], counts: bool
) -> AsyncIterator[str]:
    """Server-sent events: pieces of text, then OpenAI's end mark, or else an error."""
    try:
        yield _event(answer.part(first))
        async for piece in rest:
            yield _event(answer.part(piece))
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


_LARGEST_BODY = 2**20  # bytes; larger requests are refused with status 413
