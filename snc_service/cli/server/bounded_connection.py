"""An HTTP connection with limits on the size and time of a request's head; uvicorn has none.

Bodies are bounded where they are read. What is left here is everything around them: the request
line, headers, trailers, what a client still sends after it has been answered, and what it does not
take of an answer. When there are too many connections, those that wait for their clients give way.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 64 * 1024  # of a request line with its headers, and of trailers
HEADERS: Final = 128  # with trailers: each costs as much as a hundred bytes of one
PATH_BYTES: Final = 8 * 1024  # before the question mark: a path is unquoted whoever sends it
PIPELINED: Final = 8  # requests sent ahead of the answers to those before them
HEAD_SECONDS: Final = 10.0  # for a head to arrive, and for an unread body to end
ANSWER_SECONDS: Final = 30.0  # in which a client must take something of an answer that waits for it
_REFUSALS: Final = {
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class _TooLarge(Exception):
    """Ends the parser's work in the middle of what it was given."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with the bounds above; who exceeds one gets 431 or 408, and goes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a head is awaited. Others give way if there are too many."""
        super().connection_made(transport)
        self._unread = 0  # bytes since the parser last made progress
        self._parts: list[bytes] = []  # of a body
        self._progress = False
        self._in_head = True
        self._head_bytes = 0
        self._too_large = False
        self._waits_since = self.loop.time()
        self._clock: asyncio.TimerHandle | None = None
        self._answer_clock: asyncio.TimerHandle | None = None
        self._start_clock()
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) >= limit:
            others = (each for each in self.connections if isinstance(each, BoundedConnection))
            _make_room((each for each in others if each is not self), max(1, limit // 16))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        self._stop_answer_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, unless too many of them made no progress."""
        if self._in_head and self._clock is None:
            self._start_clock()
        self._progress = False
        super().data_received(data)
        self._pass_on()
        self._unread = 0 if self._progress else self._unread + len(data)
        if self._unread > HEAD_BYTES:
            self._refuse(431)

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP; a URL that the parser cannot hold is reported as too long."""
        if len(self.url or b"") < HEAD_BYTES and not self._too_large:
            super().send_400_response(msg)
            return
        self._stop_clock()
        self._answer(431)

    def on_message_begin(self) -> None:
        """Begin a head, unless too many requests wait for their answers."""
        if len(self.pipeline) >= PIPELINED:
            self._end_parsing()
        self._head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, or a trailer."""
        self._head_bytes += len(name) + len(value)
        if len(self.headers) >= HEADERS or self._head_bytes > HEAD_BYTES:
            self._end_parsing()
        super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """Record the start of a chunk or of the trailers."""
        self._progress = True

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body: all parts of what was received at once are passed on together.

        uvicorn appends each to all before it, which takes tiny chunks the square of their number.
        """
        self._progress = True
        self._parts.append(body)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        if len(self.url) > PATH_BYTES and b"?" not in self.url[:PATH_BYTES]:
            self._end_parsing()
        self._progress = True
        self._in_head = False
        self._waits_since = self.loop.time()
        self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request's body; the next bytes are a head."""
        self._pass_on()
        self._progress = True
        self._in_head = True
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End an answer; an unread body must end soon too."""
        super().on_response_complete()
        self._waits_since = self.loop.time()
        if not self._in_head and self._clock is None:
            self._start_clock()
        if self._answer_clock is None and self.transport.get_write_buffer_size():
            self._start_answer_clock()  # closing, too, waits until everything is taken

    def pause_writing(self) -> None:
        """Start the clock of an answer that its client does not take."""
        super().pause_writing()
        self._waits_since = self.loop.time()
        self._stop_answer_clock()
        self._start_answer_clock()

    def resume_writing(self) -> None:
        """Stop it: the client has taken most of what waited."""
        super().resume_writing()
        self._stop_answer_clock()

    def waits(self) -> tuple[int, float] | None:
        """Return how early this connection gives way, None if the service works for it.

        Before all others those without a request, then those whose body or answer makes no way;
        among them the one that has waited longest.
        """
        if self.cycle is None or self.cycle.response_complete:
            return int(self.flow.write_paused), self._waits_since
        stuck = self.cycle.more_body or self.flow.write_paused
        return (1, self._waits_since) if stuck else None

    def give_way(self) -> None:
        """Hang up: another client needs the place."""
        self.connections.discard(self)
        self.transport.abort()

    def _pass_on(self) -> None:
        if self._parts:
            body = b"".join(self._parts)
            self._parts.clear()
            super().on_body(body)

    def _get_upgrade(self) -> None:
        """Return no protocol: nothing is upgraded to, and a long list of them is not even read."""

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: everybody could fill the log with it."""

    def _end_parsing(self) -> None:
        self._too_large = True
        raise _TooLarge

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEAD_SECONDS, self._refuse, 408)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _start_answer_clock(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._answer_clock = self.loop.call_later(ANSWER_SECONDS, self._check_taken, waiting)

    def _stop_answer_clock(self) -> None:
        if self._answer_clock is not None:
            self._answer_clock.cancel()
            self._answer_clock = None

    def _check_taken(self, before: int) -> None:
        self._answer_clock = None
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self._start_answer_clock()

    def _refuse(self, status: int) -> None:
        """Send the reason, if nothing was answered yet, and close the connection."""
        self._stop_clock()
        if self.transport.is_closing():
            return
        answered = self.cycle is None or self.cycle.response_complete
        if self._in_head and self._unread and answered:  # a silent socket has sent no request
            self._answer(status)
        self.transport.close()

    def _answer(self, status: int) -> None:
        line = b"HTTP/1.1 %d %s\r\n" % (status, _REFUSALS[status])
        self.transport.write(line + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


def _make_room(connections: Iterable[BoundedConnection], places: int) -> None:
    """Let some connections that wait for their clients give way, several in one look at all."""
    waiting = [(order, each) for each in connections if (order := each.waits()) is not None]
    for _, each in heapq.nsmallest(places, waiting, key=lambda pair: pair[0]):
        each.give_way()
