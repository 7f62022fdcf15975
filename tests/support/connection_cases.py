"""Connections of `snc serve` without a network: what is fed to one, and what it writes."""

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from snc_service.cli.server.bounded_connection import BoundedConnection


class Transport(asyncio.Transport):
    """Keeps what is written; ``untaken`` bytes of it wait for the client."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closing, self.aborted, self.untaken = b"", False, False, 0

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Served:
    """A server's connections. Use it on an event loop."""

    def __init__(self, app: Any, limit: int | None = None) -> None:
        self.config = Config(
            app,
            http=BoundedConnection,
            ws="none",
            limit_concurrency=limit,
            log_config=None,
            access_log=False,
        )
        self.config.load()
        self.state = ServerState()

    def connect(self, transport: Transport, loop: Any = None) -> BoundedConnection:
        connection = BoundedConnection(
            config=self.config,
            server_state=self.state,
            app_state={},
            _loop=loop or asyncio.get_running_loop(),
        )
        connection.connection_made(transport)
        return connection
