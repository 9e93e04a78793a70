"""The routes: OpenAI's completions and models, health, policies, and the web page."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, StreamingResponse

from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.report.scores import LogPerplexity
from ppf.runtime import DynamicModel
from ppf.server.errors import FAILURE, add_handlers, content
from ppf.server.guard import Guard
from ppf.server.requests import CompletionRequest
from ppf.server.scheduler import Generation, Scheduler
from ppf.server.writer import Completion


def create_app(
    model: DynamicModel,
    name: str,
    scheduler: Scheduler,
    *,
    hosts: Sequence[str],
    api_key: str | None,
) -> FastAPI:
    """Creates the application that serves one model.

    All routes are coroutines, so that the others answer at once while completions wait.

    Args:
        name: name of the model for clients.
        scheduler: generates the completions.
        hosts: allowed values of the Host header; "*" allows any.
        api_key: the key that requests to /v1 must send; None: no key is needed.
    """
    app = FastAPI(title="PPF", docs_url=None, redoc_url=None)
    add_handlers(app)
    app.add_middleware(Guard, api_key=api_key, body_mib=scheduler.limits.body_mib)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    prunable = model.space.total / parameters(model.lm.model)
    page = (files("ppf.server") / "templates" / "page.html").read_text(encoding="utf-8")
    entry = {
        "id": name,
        "object": "model",
        "owned_by": "ppf",
        "pruning_ratios": model.ratios,
        "compensation": model.compensation,
    }

    @app.get("/", response_class=HTMLResponse)
    async def show() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/policies")
    async def policy(pruning_ratio: float) -> dict[str, Any]:
        return await run_in_threadpool(_policy, model, pruning_ratio, prunable)

    @app.post("/v1/completions", response_model=None)
    async def complete(
        asked: CompletionRequest, request: Request
    ) -> StreamingResponse | dict[str, Any]:
        if asked.model not in (None, name):
            raise PPFError(f"this server has no model '{asked.model}': give model='{name}'.")
        completion = Completion(model, asked)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        pieces = scheduler.start(completion, request)
        # Waits for the first piece: until the answer starts, an error can still set its status.
        text = await anext(pieces, "")
        if asked.stream:
            events = _events(head, text, pieces, completion)
            return StreamingResponse(events, media_type="text/event-stream")
        text += "".join([piece async for piece in pieces])
        return head | _choice(text, completion.finish_reason) | _counts(completion)

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
    head: dict[str, Any], text: str, pieces: Generation, completion: Completion
) -> AsyncIterator[str]:
    """Server-sent events: pieces of text, then counts and OpenAI's end mark, or else an error."""
    try:
        yield _event(head | _choice(text, None))
        async for piece in pieces:
            yield _event(head | _choice(piece, None))
    except HTTPException as error:
        yield _event(content(error.status_code, error.detail))
    except Exception:
        yield _event(content(500, FAILURE))
        raise
    else:
        yield _event(head | _choice("", completion.finish_reason) | _counts(completion))
        yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return {"choices": [choice]}


def _counts(completion: Completion) -> dict[str, Any]:
    prompt, new = completion.prompt_tokens, completion.new_tokens
    return {
        "usage": {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new},
        "pruning_ratio": completion.ratio,
        "prefill_seconds": completion.prefill,
        "tokens_per_second": completion.tokens_per_second,
    }


def _perplexity(prediction: tuple[float, float] | None) -> dict[str, Any] | None:
    """Predicted perplexity with its 95 % interval; None without a prediction."""
    if prediction is None:
        return None
    score = LogPerplexity(*prediction)
    return {"mean": score.perplexity, "interval_95": score.interval}
