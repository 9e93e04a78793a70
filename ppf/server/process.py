"""Runs the server: its socket, and its shutdown."""

import asyncio
import errno
import math
import signal
import socket
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from ppf.errors import PPFError
from ppf.server.scheduler import Scheduler

_ANSWERING_SECONDS = 2  # seconds for stopped requests to send their last answer


def bind(host: str, port: int) -> socket.socket:
    """Reserves an address: a socket that is bound, but does not listen yet.

    Raises:
        PPFError: the address is in use, or does not belong to this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        foreign = isinstance(error, socket.gaierror) or (
            isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
        )
        raise PPFError(
            f"the server cannot listen on host={host} port={port} ({error}): give another"
            f" {'host' if foreign else 'port'}=."
        ) from error
    return bound


def listen(bound: socket.socket) -> None:
    """Makes a bound socket listen.

    Raises:
        PPFError: another server has begun to listen on the address since it was bound.
    """
    try:
        bound.listen()
    except OSError as error:
        raise PPFError(
            f"another server listens on this port ({error}): give another port=."
        ) from error


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs on the same machine can reach the socket."""
    return ip_address(bound.getsockname()[0]).is_loopback


def allowed_hosts(host: str, bound: socket.socket) -> list[str]:
    """Allowed values of the Host header; "*" allows any.

    A web site may map its own name to the loopback address, so that a browser on this machine sends
    the site's requests here (DNS rebinding). The Host header of such requests is the site's name.
    """
    return ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(bound) else ["*"]


def serve(app: FastAPI, scheduler: Scheduler, bound: socket.socket, log_level: str) -> None:
    """Serves until SIGTERM or Ctrl+C. Open requests then get `limits.shutdown_seconds` to end."""
    # uvicorn raises the signal again at its end: the default handler prints no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _Server(app, scheduler, log_level).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Stops generations at shutdown, and closes connections that stay open after that."""

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
