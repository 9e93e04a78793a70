"""`serve`: one model in memory at any ratio, with an OpenAI-style API and a web page."""

import socket
from asyncio import CancelledError
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.errors import PPFError
from ppf.progress import say
from ppf.runtime import DynamicModel

ONE_PROCESS = True
_SHUTDOWN_SECONDS = 4  # seconds that open requests have after SIGTERM or Ctrl+C


def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Serves the search in `cfg.search` until it is stopped."""
    import uvicorn  # of an extra, as what these modules import
    from starlette.types import Receive, Scope, Send

    from ppf.server.app import create_app
    from ppf.server.scheduler import Scheduler

    template = Path(cfg.chat_template).read_text(encoding="utf-8") if cfg.chat_template else None
    key, host = cfg.api_key or None, f"[{cfg.host}]" if ":" in cfg.host else cfg.host
    with listen(cfg.host, cfg.port) as listening:
        address, port = listening.getsockname()[:2]
        loopback = ip_address(address).is_loopback
        if key is None and not loopback:
            say(f"Warning: host={cfg.host} lets other machines use the model: give api_key=KEY.")
        model = DynamicModel.from_config(cfg, fabric)
        if template is not None:
            model.lm.tokenizer.chat_template = template
        scheduler = Scheduler(model, instantiate(cfg.limits))
        # A web site may map its own name to the loopback address, so that a browser on this machine
        # sends the site's requests here (DNS rebinding). Their Host header is the site's name.
        hosts = ["localhost", "127.0.0.1", "[::1]", host] if loopback else ["*"]
        app = create_app(model.name, scheduler, hosts=hosts, api_key=key)

        async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
            with suppress(CancelledError):  # uvicorn would print a traceback
                await app(scope, receive, send)

        say(f"Serving {cfg.search} on http://{host}:{port} (Ctrl+C stops it).")
        config = uvicorn.Config(
            quiet, log_level="warning", timeout_graceful_shutdown=_SHUTDOWN_SECONDS
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        PPFError: the address is in use, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise PPFError(
            f"the server cannot listen on host={host} port={port} ({error.strerror}): give another"
            " port= or host=."
        ) from error
