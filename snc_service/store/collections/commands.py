"""Commands of a store, for running jobs."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    commands,
    runs,
)
from snc_service.store.types.records import StoredCommand
from snc_service.wire import CommandAction


class CommandQueue:
    """A run's commands by id. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, run: str, action: CommandAction, reason: str, *, author: str, now: float
    ) -> StoredCommand:
        """Store a command for a run's job (event ``command``, audit ``command_sent``).

        Raises `RunUnknown`, `RunClosed`, and `CommandsWaiting` above `MAX_WAITING_COMMANDS`.
        """
        with self._database.write() as connection:
            return commands.add(connection, run, action, reason, author=author, now=now)

    def of_run(self, run: str) -> list[StoredCommand]:
        """Return every command of a run, newest first. Raises `RunUnknown`."""
        with self._database.read() as connection:
            return commands.every(connection, runs.number(connection, run))
