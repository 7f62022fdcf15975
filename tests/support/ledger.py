"""A small service over real sockets: it keeps what it acknowledged and misbehaves as told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

from snc_service.wire import ABSENT, Batch, LayerTable, decode


class Seen(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    at: float


class Reply(NamedTuple):
    """What goes back. ``cut``: the connection ends without an answer."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


def told(status: int, **body: Any) -> Reply:
    return Reply(status, json.dumps(body).encode())


CUT = Reply(0, cut=True)

# A fault looks at a request: a reply is sent instead of the right one, None lets it pass. With
# ``done`` the right thing has happened already, and only its answer is replaced.
Fault = Callable[[Seen], Reply | None]


class Ledger:
    """The service: `batches` per run in the order of their acknowledgement."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, list[Batch]] = {}
        self.tables: dict[str, LayerTable] = {}
        self.ends: dict[str, str] = {}
        self.policy: dict[str, Any] | None = None
        self.policy_version = 0
        self.attempt, self.last_step = 0, None
        self.follow = False  # answer with the attempt and the last step that arrived
        self.before: Fault = lambda _: None
        self.after: Fault = lambda _: None
        self.url = ""
        self._changed = threading.Condition()

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for what another thread brings about."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "it did not happen"

    def answer(self, seen: Seen) -> Reply:
        with self._changed:
            self.seen.append(seen)
            self._changed.notify_all()
        reply = self.before(seen)
        if reply is None:
            with self._changed:
                reply = self._act(seen)
                self._changed.notify_all()
            reply = self.after(seen) or reply
        return reply

    def posted(self, ending: str) -> list[Seen]:
        return [seen for seen in list(self.seen) if seen.path.endswith(ending)]

    @property
    def num_batches(self) -> int:
        return sum(map(len, self.batches.values()))

    def rows(self, run: str) -> dict[tuple[int, int], tuple[np.ndarray, dict[str, float]]]:
        """Return values [M, L] and scalars by (attempt, step)."""
        found = {}
        for batch in self.batches.get(run, []):
            for s, step in enumerate(batch.steps):
                scalars = {
                    name: float(batch.scalar_values[k, s])
                    for k, name in enumerate(batch.scalars)
                    if batch.scalar_values[k, s].tobytes() != ABSENT.tobytes()
                }
                found[batch.attempt, step] = (batch.values[:, s], scalars)
        return found

    def _act(self, seen: Seen) -> Reply:
        parts = seen.path.removeprefix("/api/v1/").split("/")
        if parts == ["runs"]:
            body = json.loads(seen.body)
            self.runs.setdefault(body["run"], body)
            stored = self.batches.setdefault(body["run"], [])
            if self.follow and stored:
                self.attempt, self.last_step = stored[-1].attempt, stored[-1].steps[-1]
            return told(
                201,
                run=body["run"],
                attempt=self.attempt,
                last_step=self.last_step,
                policy=self.policy or {"entries": []},
                policy_version=self.policy_version,
            )
        run = parts[1]
        if run not in self.runs:
            return told(404, type="/problems/run-unknown")
        if parts[2] == "finish":
            self.ends[run] = json.loads(seen.body)["state"]
            return told(200)
        if parts[2] == "layer-tables":
            self.tables[parts[3]] = LayerTable.parse(seen.body)
            return told(200)
        return self._ingest(run, decode(seen.body), int(seen.headers["snc-policy-version"]))

    def _ingest(self, run: str, batch: Batch, version: int) -> Reply:
        stored = [old for old in self.batches[run] if old.writer == batch.writer]
        last = stored[-1].seq if stored else -1
        if batch.layers not in self.tables:
            return told(409, type="/problems/layer-table-unknown")
        if batch.seq - batch.skipped > last + 1:
            return told(409, type="/problems/sequence-gap", expected=last + 1)
        duplicate = batch.seq <= last
        if not duplicate:
            self.batches[run].append(batch)
        newer = version < self.policy_version
        policy = {"policy": self.policy} if newer else {}
        return told(
            200,
            accepted=0 if duplicate else batch.num_values,
            duplicate=duplicate,
            policy_version=self.policy_version,
            **policy,
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ledger: Ledger

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.ledger.answer(Seen(self.command, self.path, body, headers, time.monotonic()))
        if reply.cut:
            self.close_connection = True
            return
        try:
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
        except OSError:  # the client has gone: its affair
            self.close_connection = True

    do_POST = do_PUT = do_GET = _serve

    def log_message(self, *_: object) -> None:
        """Say nothing: the test looks at `Ledger.seen`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # A test may hold the number with a socket that does not listen.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of what is tested."""


@contextmanager
def serving(ledger: Ledger, port: int = 0) -> Iterator[Ledger]:
    """Serve ``ledger`` on a loopback port (0: a free one)."""
    handler = type("Handler", (_Handler,), {"ledger": ledger})
    with _Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        ledger.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield ledger
        finally:
            server.shutdown()
            thread.join()
