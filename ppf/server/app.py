"""The routes: OpenAI's completions and models, health, policies, and the page."""

import json
import time
import uuid
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from ppf.errors import PPFError
from ppf.evaluation.size import parameters
from ppf.report.scores import Score
from ppf.runtime import DynamicModel
from ppf.server.requests import CompletionRequest
from ppf.server.writer import Completion


def create_app(model: DynamicModel, name: str) -> FastAPI:
    """The application that serves one model.

    Args:
        name: the model's, as clients see it.
    """
    app = FastAPI(title="PPF", docs_url=None, redoc_url=None)
    page = (files("ppf.server") / "templates" / "page.html").read_text(encoding="utf-8")
    prunable = model.space.total / parameters(model.lm.model)

    @app.exception_handler(PPFError)
    def refuse(request: Request, error: PPFError) -> JSONResponse:
        return _refusal(str(error))

    @app.exception_handler(RequestValidationError)
    def refuse_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return _refusal(f"{place}: {first['msg']}.")

    @app.get("/", response_class=HTMLResponse)
    def show() -> str:
        return page

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "owned_by": "ppf"}
        more = {"pruning_ratios": model.ratios, "compensation": model.compensation}
        return {"object": "list", "data": [entry | more]}

    @app.get("/v1/policies")
    def policy(pruning_ratio: float) -> dict[str, Any]:
        kept = model.policy(pruning_ratio)
        achieved = float(model.space.ratio(torch.tensor(kept)))
        return {
            "pruning_ratio": achieved,
            "of_all_parameters": achieved * prunable,
            "predicted_perplexity": _perplexity(model.policies.predicted(pruning_ratio)),
            "sites": [
                {"layer": s.layer, "kind": s.kind, "kept": k, "units": s.units}
                for s, k in zip(model.space.sites, kept, strict=True)
            ],
        }

    @app.post("/v1/completions", response_model=None)
    def complete(request: CompletionRequest) -> StreamingResponse | dict[str, Any]:
        if request.model not in (None, name):
            raise PPFError(f"there is no model '{request.model}' here: ask for '{name}'.")
        completion = Completion(model, request)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        if request.stream:
            return StreamingResponse(_events(head, completion), media_type="text/event-stream")
        text = "".join(completion)
        return head | _choice(text, completion.finish_reason) | _counts(completion)

    return app


def _refusal(sentence: str) -> JSONResponse:
    error = {"message": sentence, "type": "invalid_request_error"}
    return JSONResponse({"error": error}, status_code=400)


def _events(head: dict[str, Any], completion: Completion) -> Iterator[str]:
    """Server-sent events: the text's pieces, the counts, and OpenAI's end mark."""
    for text in completion:
        yield _event(head | _choice(text, None))
    yield _event(head | _choice("", completion.finish_reason) | _counts(completion))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


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
    """Predicted perplexity with its 95 % interval."""
    if prediction is None:
        return None
    score = Score(*prediction)
    return {"mean": score.perplexity, "interval_95": score.interval}
