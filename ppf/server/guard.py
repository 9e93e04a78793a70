"""Checks the API key and the body size of a request before it reaches a route."""

from asyncio import CancelledError
from contextlib import suppress
from hmac import compare_digest

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppf.server.errors import refusal


class Guard:
    """ASGI middleware that refuses requests without the API key (401) or with a large body (413).

    Args:
        api_key: the key that requests to /v1 must send; None: no key is needed.
        body_mib: largest body, in MiB.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, body_mib: float) -> None:
        self._app, self._body_mib = app, body_mib
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        closed = scope["type"] == "http" and scope["path"].startswith("/v1/")
        app = self._app
        if closed and not self._authorised(Headers(scope=scope)):
            sentence = "this server needs an API key: send the header `Authorization: Bearer KEY`."
            app = refusal(401, sentence, {"WWW-Authenticate": "Bearer"})
        # At shutdown uvicorn cancels requests; without this it would log a traceback for each.
        with suppress(CancelledError):
            await app(scope, self._limited(receive), send)

    def _authorised(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and compare_digest(key.encode("latin-1"), self._key)

    def _limited(self, receive: Receive) -> Receive:
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._body_mib * 2**20:
                raise HTTPException(
                    413,
                    f"the request's body is larger than {self._body_mib:g} MiB: shorten the prompt,"
                    " or restart the server with a larger limits.body_mib.",
                )
            return message

        return limited
