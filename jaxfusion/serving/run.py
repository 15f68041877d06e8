"""--mode serve: from a socket to a clean end."""

import os
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn
from rich.console import Console

from jaxfusion.config import Config
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Model, Params
from jaxfusion.serving.app import make_app

# Keys that are in no file and no list of processes: one, or several with commas between.
KEYS = "JAXFUSION_API_KEYS"


class _Uvicorn(uvicorn.Server):
    """Calls `ready` once requests are answered."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet. Raises UserError where the address is not to be had."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(f"config.serve.port: {host}:{port} is not to be had ({error}); choose another") from None
    return bound


def serve(
    bound: socket.socket,
    model: Model,
    params: Params,
    config: Config,
    name: str,
    prepare: Callable[[str], str] = lambda text: text,
) -> None:
    """Answers until SIGTERM or SIGINT; then what is in flight is finished, for up to `serve.shutdown_seconds`."""
    uvicorn_server = make_server(model, params, config, name, prepare, lambda: _tell(bound, config, name))
    # uvicorn raises the signal once more when all is finished; the end is clean, so it shall not count then.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn_server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_server(
    model: Model,
    params: Params,
    config: Config,
    name: str,
    prepare: Callable[[str], str] = lambda text: text,
    ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """A server to run with a bound socket. ready: called once it answers."""
    settings = config.serve
    if config.generate.num_beams > 1:
        raise UserError("config.generate.num_beams: the server knows no beam search; set it to 1")
    app = make_app(
        model,
        params,
        name=settings.model_name or name,
        settings=settings,
        defaults=config.generate,
        keys=api_keys(config),
        prepare=prepare,
    )
    uvicorn_config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    return _Uvicorn(uvicorn_config, ready)


def api_keys(config: Config) -> tuple[str, ...]:
    """Those of the config and of the environment."""
    others = (key.strip() for key in os.environ.get(KEYS, "").split(","))
    return (*filter(None, config.serve.api_keys), *filter(None, others))


def announcement(host: str, port: int, name: str, asks_for_key: bool) -> list[str]:
    """What to say of a server of the model `name` that answers at the address `host`."""
    address, loopback = ip_address(host), "::1" if ":" in host else "127.0.0.1"
    shown = loopback if address.is_unspecified else host  # nobody can open 0.0.0.0, which stands for all addresses
    shown = f"[{shown}]" if ":" in shown else shown
    lines = [
        f"{name} is served at http://{shown}:{port}/v1",
        f"to talk with it, open http://{shown}:{port}/ in a browser",
    ]
    if address.is_unspecified:
        lines.append(f"on other machines, this machine's name takes the place of {shown}")
    if not address.is_loopback and not asks_for_key:
        lines.append(f"others reach it, and it asks for no key; set {KEYS}")
    return lines


def _tell(bound: socket.socket, config: Config, name: str) -> None:
    host, port = bound.getsockname()[:2]
    console = Console(stderr=True)
    for line in announcement(host, port, config.serve.model_name or name, bool(api_keys(config))):
        console.print(f"jaxfusion: {line}", markup=False, soft_wrap=True)
