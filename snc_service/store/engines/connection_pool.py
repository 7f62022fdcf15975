"""A bounded pool of connections: each is lent to one thread and replaced when it breaks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from snc_service.store.sql.database.dialect import Row
from snc_service.store.types import StoreUnavailable

WAIT_SECONDS = 15.0  # for a free connection


class Session(psycopg.Connection[Row]):
    """A connection to the server, or to a pooler that lends another session per transaction."""

    settings = ""  # what every transaction must set for itself, behind its ``begin``


class Lane:
    """At most ``most`` connections; a new one is opened when all others are in use."""

    def __init__(self, connect: Callable[[], Session], most: int) -> None:
        self._connect = connect
        self._free = threading.BoundedSemaphore(most)
        self._idle: deque[Session] = deque()
        self._closed = False

    @contextmanager
    def lent(self, begin: str) -> Iterator[Session]:
        """Lend a connection on which the statement ``begin`` has succeeded.

        Raises `StoreUnavailable` after `WAIT_SECONDS` without a free one, and connection errors.
        """
        if not self._free.acquire(timeout=WAIT_SECONDS):
            raise StoreUnavailable(f"all connections were in use for {WAIT_SECONDS:.0f} seconds")
        try:
            session = self._begun(begin)
            try:
                yield session
            finally:
                self._take_back(session)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close idle connections, and from now on every connection that is returned."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _begun(self, begin: str) -> Session:
        """Begin on the connection used last. After a server restart all idle ones are dead."""
        while True:
            try:
                session = self._idle.pop()
            except IndexError:
                break
            try:
                session.execute(f"{begin}{session.settings}")
                return session
            except psycopg.OperationalError:
                session.close()
        session = self._connect()
        try:
            session.execute(f"{begin}{session.settings}")
        except BaseException:
            session.close()
            raise
        return session

    def _take_back(self, session: Session) -> None:
        if session.closed or self._closed:
            session.close()
        else:
            self._idle.append(session)
