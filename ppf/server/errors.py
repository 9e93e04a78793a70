"""Error answers in OpenAI's format: one sentence in JSON, with an HTTP status."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ppf.errors import PPFError, faulty_part

FAILURE = "the server failed: its log shows the cause."


def content(status: int, sentence: str) -> dict[str, Any]:
    """The JSON body of an error answer."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    printable = sentence.encode(errors="backslashreplace").decode()
    return {"error": {"message": printable, "type": kind}}


def add_handlers(app: FastAPI) -> None:
    """Turns every exception in a route into an error answer."""

    @app.exception_handler(PPFError)
    async def refuse(request: Request, error: PPFError) -> JSONResponse:
        return JSONResponse(content(400, str(error)), 400)

    @app.exception_handler(RequestValidationError)
    async def refuse_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = faulty_part(first["loc"][1:], error.body, missing=first["type"] == "missing")
        place = ".".join(str(key) for key, _ in path) or "the request"
        return JSONResponse(content(400, f"{place[:80]}: {first['msg']}."), 400)

    @app.exception_handler(HTTPException)
    async def answer(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            content(error.status_code, error.detail), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(content(500, FAILURE), 500)
