"""``snc serve``: the service in this process, until SIGINT or SIGTERM."""

from __future__ import annotations

import gc
import os
import socket
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from snc_service import __version__
from snc_service.cli.failure import Failure

if TYPE_CHECKING:
    from snc_service.settings import Settings

DRAIN_SECONDS = 5  # an open event stream would keep the process alive forever
FAILED_TO_START = 1
MAX_CONNECTIONS = 1_000  # then the idle give way: each costs a descriptor, systems allow 1,024
SWITCH_SECONDS = 0.001  # until the event loop may run beside threads that compute, instead of 0.005
UNSENT_BYTES = 128 * 1024  # of an answer that the system may hold before they are sent


def serve(arguments: Namespace) -> int:
    """Serve until a signal. Raises `Failure` before anything is served if it cannot start."""
    try:
        import snc_service.app
        import snc_service.cli.server.bounded_connection  # noqa: F401 # to say what is missing
    except ModuleNotFoundError as error:
        raise Failure(
            f"snc serve needs {error.name}, which is not installed: "
            "pip install 'spectral-norm-constraint[service]'"
        ) from None
    settings = _settings(arguments)
    if arguments.check:
        return _check(settings)
    if settings.workers > 1:
        return _serve_by_workers(settings)
    with _listening(settings.host, settings.port) as listener:
        _check_store(settings)
        print(f"snc {__version__} serves {_url(listener)} (Ctrl-C ends it)", flush=True)
        return _serve_on(settings, listener)


def _serve_by_workers(settings: Settings) -> int:
    from snc_service.cli.server import logs, workers

    if not hasattr(socket, "SO_REUSEPORT"):
        raise Failure("SNC_WORKERS must be 1 on this system: its processes cannot share a port")
    _listening(settings.host, settings.port).close()  # nobody else has it
    # Bound, and never listening: it keeps the port while the workers come and go.
    with _listening(settings.host, settings.port, is_shared=True, listens=False) as place:
        _check_store(settings)
        logs.start(access_log=settings.access_log)
        settings = replace(settings, port=place.getsockname()[1])
        told = f"snc {__version__} serves {_url(place)} with {settings.workers} workers"
        print(f"{told} (Ctrl-C ends it)", flush=True)
        return workers.supervise(settings.workers, serve_as_worker, settings)


def serve_as_worker(settings: Settings) -> int:
    """Serve on the port that the settings name, beside other processes, until a signal."""
    with _listening(settings.host, settings.port, is_shared=True) as listener:
        return _serve_on(settings, listener)


def _serve_on(settings: Settings, listener: socket.socket) -> int:
    import uvicorn

    from snc_service.app import create_app, drain
    from snc_service.cli.server import logs
    from snc_service.cli.server.bounded_connection import BoundedConnection

    logs.start(access_log=settings.access_log)
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    stop = server.handle_exit

    def drain_and_stop(sig: int, frame: FrameType | None) -> None:
        drain(app)  # ends the streams: the server waits for them before it stops
        stop(sig, frame)

    server.handle_exit = drain_and_stop  # type: ignore[method-assign]
    gc.freeze()  # what is there stays: to look through it for garbage stops all threads for 0.1 s
    server.run(sockets=[listener])
    return 0 if server.started else FAILED_TO_START


def _check(settings: Settings) -> int:
    """Report each requirement of a start; raise `Failure` at the first that is not met."""
    print(f"settings: understood; the service would listen on {settings.host}:{settings.port}")
    num_tokens = _check_store(settings)
    asked = (
        f"{num_tokens} tokens, everybody needs one" if num_tokens else "no token, nobody is asked"
    )
    print(f"store: reachable, its tables are those of this release; {asked}")
    _listening(settings.host, settings.port).close()
    print("port: free")
    return 0


def _settings(arguments: Namespace) -> Settings:
    from snc_service.settings import Settings, SettingsError

    try:
        return Settings.from_env(
            os.environ,
            host=arguments.host,
            port=arguments.port,
            store=arguments.store,
            insecure=arguments.insecure or None,
            workers=arguments.workers,
        )
    except SettingsError as error:
        raise Failure(str(error)) from None


def _listening(
    host: str, port: int, *, is_shared: bool = False, listens: bool = True
) -> socket.socket:
    """Return a bound socket, so that a taken port is an error before the store is opened."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Failure(f"cannot listen on {host}: {error.strerror or error}") from None
    try:
        if sys.platform != "win32":  # on Windows it would allow two services on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Connections inherit it: what a client has not taken waits here, where it is counted.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.bind(address)
        if listens:
            listener.listen(2048)
    except OSError as error:
        listener.close()
        raise Failure(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another with --port or SNC_PORT"
        ) from None
    return listener


def _check_store(settings: Settings) -> int:
    """Open the store, close it, and return the number of its tokens.

    An invalid store gives one sentence here, but a traceback inside the server.
    """
    from snc_service.settings import SettingsError
    from snc_service.store import open_store
    from snc_service.store.types import StoreError

    try:
        connections, read = settings.store_connections, settings.store_read
        with closing(open_store(settings.store, connections=connections, read_url=read)) as store:
            num_tokens = len(store.tokens.all())
        settings.check_exposure(num_tokens > 0)
    except SettingsError as error:
        raise Failure(str(error)) from None
    except (StoreError, ValueError) as error:
        raise Failure(f"{error}; choose another store with --store or SNC_STORE") from None
    return num_tokens


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"
