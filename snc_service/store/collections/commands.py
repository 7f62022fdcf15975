"""Commands of a store, for running jobs."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    commands,
    runs,
)
from snc_service.store.types import RunBounds
from snc_service.store.types.records import StoredCommand
from snc_service.wire import CommandAction


class CommandQueue:
    """A run's commands by id. Each method is one transaction."""

    def __init__(self, database: Database, bounds: RunBounds) -> None:
        self._database = database
        self._most = bounds.commands

    def add(
        self, run: str, action: CommandAction, reason: str, *, author: str, now: float
    ) -> StoredCommand:
        """Store a command for a run's job (event ``command``, audit ``command_sent``).

        Raises `RunUnknown`, `RunClosed`, `CommandsWaiting` above `MAX_WAITING_COMMANDS`, and
        `RunFull`.
        """
        with self._database.write() as connection:
            return commands.add(
                connection, run, action, reason, author=author, now=now, most=self._most
            )

    def page(self, run: str, *, limit: int = 100, below: int = 2**62) -> list[StoredCommand]:
        """Return a run's commands with an id below ``below``, newest first. Raises `RunUnknown`."""
        with self._database.read() as connection:
            return commands.page(connection, runs.number(connection, run), limit, below)

    def waiting(self, run: str) -> tuple[StoredCommand, ...]:
        """Return the commands that a run's job has not received, oldest first."""
        with self._database.read() as connection:
            return commands.waiting(connection, runs.number(connection, run))
