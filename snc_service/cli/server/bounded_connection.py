"""One HTTP connection whose head cannot grow or take for ever: uvicorn bounds neither.

Bodies are bounded where they are read. What is left here is everything around them: the request
line, headers, trailers, and what a client still sends after it has been answered.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 64 * 1024  # of a request line with its headers, and of trailers
HEAD_SECONDS: Final = 10.0  # for a head to arrive, and for a body that is not read any more to end
_REFUSALS: Final = {
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with the two bounds above; who exceeds one gets 431 or 408, and goes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a head is awaited."""
        super().connection_made(transport)
        self._unread = 0  # bytes since the parser last got something done
        self._progress = False
        self._in_head = True
        self._clock: asyncio.TimerHandle | None = None
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, unless too many of them have come to nothing."""
        if self._in_head and self._clock is None:
            self._start_clock()
        self._progress = False
        super().data_received(data)
        self._unread = 0 if self._progress else self._unread + len(data)
        if self._unread > HEAD_BYTES:
            self._refuse(431)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; a URL that the parser cannot hold is only too long."""
        if len(self.url or b"") < HEAD_BYTES:
            super().send_400_response(msg)
            return
        self._stop_clock()
        self._answer(431)

    def on_chunk_header(self) -> None:
        """Note that a chunk, or the trailers, begin."""
        self._progress = True

    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body."""
        self._progress = True
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._progress = True
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request's body; the next thing to come is a head."""
        self._progress = True
        self._in_head = True
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End an answer; a body that nobody reads must end soon too."""
        super().on_response_complete()
        if not self._in_head and self._clock is None:
            self._start_clock()

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEAD_SECONDS, self._refuse, 408)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self, status: int) -> None:
        """Say why, if nothing was answered yet, and hang up."""
        self._stop_clock()
        if self.transport.is_closing():
            return
        answered = self.cycle is None or self.cycle.response_complete
        if self._in_head and self._unread and answered:  # a socket that stayed mute asked nothing
            self._answer(status)
        self.transport.close()

    def _answer(self, status: int) -> None:
        line = b"HTTP/1.1 %d %s\r\n" % (status, _REFUSALS[status])
        self.transport.write(line + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
