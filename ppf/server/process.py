"""The server's process: its socket, and how it ends."""

import asyncio
import math
import signal
import socket
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from ppf.errors import PPFError
from ppf.server.scheduler import Scheduler

_ANSWERING_SECONDS = 2  # time for stopped requests to send their last answer


def bind(host: str, port: int) -> socket.socket:
    """A socket with the address, which refuses connections until it listens.

    Raises:
        PPFError: the address is taken, or not this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise PPFError(
            f"the server cannot listen on host={host} port={port} ({error}): give another port=."
        ) from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs on the same machine can reach the socket."""
    return ip_address(bound.getsockname()[0]).is_loopback


def allowed_hosts(host: str, bound: socket.socket) -> list[str]:
    """The host names that requests may carry; "*" stands for any.

    A web site may point its own name at the loopback address, so that a browser on this machine
    sends the site's requests here (DNS rebinding). Such requests carry the site's name.
    """
    return ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(bound) else ["*"]


def serve(app: FastAPI, scheduler: Scheduler, bound: socket.socket, log_level: str) -> None:
    """Serves until SIGTERM or Ctrl+C; open requests then have `limits.shutdown_seconds` left."""
    # uvicorn raises the signal again in the end: let it end the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _Server(app, scheduler, log_level).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Stops generations at shutdown; connections that stay open after that are cut."""

    def __init__(self, app: FastAPI, scheduler: Scheduler, log_level: str) -> None:
        self._scheduler = scheduler
        patience = scheduler.limits.shutdown_seconds + _ANSWERING_SECONDS
        super().__init__(
            uvicorn.Config(app, log_level=log_level, timeout_graceful_shutdown=math.ceil(patience))
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        seconds = self._scheduler.limits.shutdown_seconds
        asyncio.get_running_loop().call_later(seconds, self._scheduler.stop)
        await super().shutdown(sockets)
