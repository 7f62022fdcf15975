"""The sender thread: packs rows into batches and gets them acknowledged, whatever the service does.

What each status means for the client is the table in ``_REACTIONS``; everything not listed there
is a peer that is not our service, asked again slowly.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeGuard

from snc_client.sender.connection import READ_SECONDS, THREAD_NAME, Answer, Connection
from snc_client.sender.packing import MAX_STEPS, Frame, Packer
from snc_client.sender.rows import Row, RowQueue
from snc_service.wire import (
    MEDIA_TYPE,
    POLICY_VERSION_HEADER,
    LayerTable,
    Policy,
    WireError,
)

State: TypeAlias = Literal["starting", "sending", "waiting", "closed"]
EndState: TypeAlias = Literal["finished", "failed"]

_log = logging.getLogger("snc")

REPAIRS_AT_ONCE = 3  # of one batch; a service that asks for more is asked back slowly
CLOSE_SECONDS = 5.0
MAX_TRIES = 20  # of one batch that the service answers but never takes: then it is given up


@dataclass(frozen=True)
class Pace:
    """When to send and how long to wait; the page is live, so a value waits half a second."""

    linger_seconds: float = 0.5
    batch_steps: int = 64  # waiting rows that go out before the linger is over
    batch_bytes: int = 4 * 2**20  # the wire takes 8 MiB; halved whenever a service says 413
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    slow_retry_seconds: float = 30.0  # after a refusal that only a person can lift


@dataclass(frozen=True)
class Job:
    """Who reports: the body of ``POST /runs``, and what every batch of the job has in common."""

    url: str
    run: str
    writer: str
    table: LayerTable
    metrics: tuple[str, ...]
    request: Mapping[str, Any]


class Delivery:
    """All state of the sender thread. Others may call `ring`, `close` and read the counters."""

    def __init__(self, job: Job, rows: RowQueue, pace: Pace, connect: Callable[[], Connection]):
        self._job = job
        self._rows = rows
        self._pace = pace
        self._connect = connect
        # A SimpleQueue may be rung from anywhere, even from a finalizer within one of its calls.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._policies: deque[tuple[int, Policy]] = deque(maxlen=1)
        # Not the global generator: the job's own random numbers stay as they are.
        self._jitter = random.Random()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._said: set[str] = set()

        self._connection: Connection | None = None
        self._packer: Packer | None = None
        self._created = False
        self._frame: Frame | None = None
        self._batch_bytes = pace.batch_bytes
        self._skipped = 0
        self._undeclared = 0  # values of refused batches that no batch has declared yet
        self._declared = 0  # of rows.dropped_values
        self._policy_version = 0
        self._last_send = -1e9
        self._failures = 0
        self._failing_since: float | None = None

        self._closing: EndState | None = None
        self._closing_since = 0.0
        self._deadline = float("inf")
        self._gave_up = False

        self.state: State = "starting"
        self.sent_values = 0
        self.refused_values = 0
        self.errors = 0
        self.last_error: str | None = None

    # Called from the training thread
    def start(self) -> None:
        """Start the thread; from here on the interpreter's exit closes it."""
        atexit.register(self._at_exit)
        self._thread.start()

    def ring(self) -> None:
        """Wake the thread: there is work."""
        self._bell.put(None)

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return the newest policy received and not yet taken."""
        try:
            return self._policies.pop()
        except IndexError:
            return None

    def ask_to_close(self, timeout: float, state: EndState) -> None:
        """Tell the thread to flush, finish the run and end within ``timeout`` seconds."""
        if self._closing is None and os.getpid() == self._pid:
            self._closing_since = time.monotonic()
            self._deadline = self._closing_since + timeout
            self._closing = state
            self.ring()

    def close(self, timeout: float, state: EndState) -> None:
        """Flush for at most ``timeout`` seconds, then count and say once what was lost."""
        if os.getpid() != self._pid or self.state == "closed":
            return
        self.ask_to_close(timeout, state)
        self._thread.join(timeout)
        atexit.unregister(self._at_exit)
        self._let_go()

    def _at_exit(self) -> None:
        # Set by the interpreter when an exception ends the program.
        self.close(CLOSE_SECONDS, "failed" if getattr(sys, "last_value", None) else "finished")

    def _let_go(self) -> None:
        frame, self._gave_up, self.state = self._frame, True, "closed"
        self._rows.close()
        if frame is not None:
            self.refused_values += frame.batch.num_values
        if self.dropped_values:
            _log.warning(
                "snc: run %s: %d values were sent, %d are lost (last trouble: %s)",
                self._job.run,
                self.sent_values,
                self.dropped_values,
                self.last_error,
            )

    @property
    def dropped_values(self) -> int:
        """Return how many values are lost: pushed out of memory, refused, or too late."""
        return self._rows.dropped_values + self.refused_values

    # The thread
    def _run(self) -> None:
        while not self._finished():
            try:
                self._advance()
            except Exception as error:  # the top of a thread: logged and counted
                self._trouble("bug", "the sender failed on its own: %r", error)
                self._back_off(None)
        if self._connection is not None:
            self._connection.close()

    def _finished(self) -> bool:
        if self._gave_up:
            return True
        if self._closing is None or not self._created or self._frame or len(self._rows):
            return False
        assert self._connection is not None, "a run is created over a connection"
        body = json.dumps({"state": self._closing}).encode()
        answer = self._post(f"/runs/{self._job.run}/finish", body)
        if answer.status not in (200, 204):
            self._trouble("finish", "the run was not closed on the service (%s)", answer.reason)
        return True

    def _advance(self) -> None:
        """Do the next thing: connect, create the run, wait for rows, or send a batch."""
        if self._connection is None:
            self._connection = self._connect()
        if not self._created:
            self._create_run()
        elif self._frame is None and not self._wait_for_rows():
            return
        else:
            self._send()

    def _wait_for_rows(self) -> bool:
        """Wait until a batch is due; True once one is packed."""
        while not self._due():
            self._wait(self._linger_left() if len(self._rows) else None)
            if self._closing and not len(self._rows):
                return False
        self._frame = self._pack()
        return self._frame is not None

    def _due(self) -> bool:
        if not len(self._rows):
            return False
        return (
            self._closing is not None
            or self._linger_left() <= 0
            or len(self._rows) >= self._pace.batch_steps
            or self._rows.num_bytes >= self._batch_bytes
        )

    def _linger_left(self) -> float:
        return self._last_send + self._pace.linger_seconds - time.monotonic()

    def _wait(self, seconds: float | None) -> None:
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except queue.Empty:
            pass

    def _pack(self) -> Frame | None:
        """Pack what waits: rows of increasing steps, up to the limits of a batch."""
        assert self._packer is not None, "a run is created before its first batch is packed"
        rows: list[Row] = []
        step, left = None, self._batch_bytes
        while len(rows) < MAX_STEPS:
            row = self._rows.take(after=step, max_bytes=left)
            if row is None:
                break
            rows.append(row)
            step, left = row.step, left - row.num_bytes
        if not rows:
            return None
        dropped = self._rows.dropped_values - self._declared
        frame = self._packer.pack(rows, skipped=self._skipped, dropped=dropped + self._undeclared)
        self._declared += dropped
        self._skipped = self._undeclared = 0
        return frame

    # The network
    def _post(self, path: str, content: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        return self._request("POST", path, content, headers)

    def _request(
        self, method: str, path: str, content: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        assert self._connection is not None, "connected before anything is sent"
        seconds = min(READ_SECONDS, max(self._deadline - time.monotonic(), 0.1))
        return self._connection.request(method, path, content, headers=headers, seconds=seconds)

    def _create_run(self) -> None:
        answer = self._post("/runs", json.dumps(self._job.request).encode())
        if answer.status in (400, 413, 415, 422) and len(self._job.request) > 1:
            self._trouble("run", "the service refuses the run's description (%s)", answer.reason)
            answer = self._post("/runs", json.dumps({"run": self._job.run}).encode())
        attempt, last_step = answer.body.get("attempt", 0), answer.body.get("last_step")
        if (
            answer.status not in (200, 201)
            or answer.body.get("run") != self._job.run
            or not _whole(attempt)
            or not (last_step is None or _whole(last_step))
        ):
            _REACTIONS_TO_CREATE.get(answer.status, Delivery._ask_slowly)(self, answer)
            return
        if self._packer is None:
            self._packer = Packer(self._job.writer, self._job.table.hash, self._job.metrics)
            self._packer.resume(attempt, last_step)
        self._created = True
        self._policy_version = 0
        self._take_over_policy(answer.body)
        self._recovered()

    def _send(self) -> None:
        """Try the batch at hand once and do what the answer asks for."""
        frame = self._frame
        assert frame is not None, "something is packed before it is sent"
        self._last_send = time.monotonic()
        frame.tries += 1
        headers = {
            "Content-Type": MEDIA_TYPE,
            POLICY_VERSION_HEADER: str(self._policy_version),
        }
        answer = self._post(f"/runs/{self._job.run}/batches", frame.data, headers)
        if answer.status and answer.status not in _PATIENT and frame.tries >= MAX_TRIES:
            self._refused(answer)
            return
        _REACTIONS.get(answer.status, Delivery._ask_slowly)(self, answer)

    # Reactions
    def _acknowledged(self, answer: Answer) -> None:
        if not _whole(answer.body.get("accepted")):
            self._ask_slowly(answer)
            return
        assert self._frame is not None, "an answer belongs to a batch"
        self.sent_values += self._frame.batch.num_values
        self._frame = None
        self._take_over_policy(answer.body)
        self._recovered()

    def _refused(self, answer: Answer) -> None:
        """Give the batch up; the next one declares it."""
        assert self._frame is not None, "an answer belongs to a batch"
        self._trouble("refused", "the service refuses a batch (%s); it is dropped", answer.reason)
        if answer.status == 413:
            self._batch_bytes = max(self._batch_bytes // 2, 64 * 1024)
        batch = self._frame.batch
        self.refused_values += batch.num_values
        self._undeclared += batch.num_values + batch.dropped
        self._skipped += 1 + batch.skipped
        self._frame = None

    def _conflict(self, answer: Answer) -> None:
        kind = str(answer.body.get("type", "")).rpartition("/")[2]
        expected = answer.body.get("expected")
        assert self._frame is not None, "an answer belongs to a batch"
        if kind == "layer-table-unknown":
            self._put_layer_table()
        elif kind == "sequence-gap" and _whole(expected) and expected <= self._frame.batch.seq:
            self._frame = self._frame.redeclared(expected)
            self._repaired(answer)
        elif kind == "sequence-conflict":
            self._refused(answer)
        else:
            self._ask_slowly(answer)

    def _put_layer_table(self) -> None:
        table = self._job.table
        answer = self._request(
            "PUT", f"/runs/{self._job.run}/layer-tables/{table.hash}", table.body
        )
        if 200 <= answer.status < 300:
            self._repaired(answer)
        else:
            _REACTIONS_TO_CREATE.get(answer.status, Delivery._ask_slowly)(self, answer)

    def _run_unknown(self, answer: Answer) -> None:
        self._created = False
        self._repaired(answer)

    def _repaired(self, answer: Answer) -> None:
        """Try again at once, unless this batch keeps needing repair."""
        if self._frame is not None and self._frame.tries > REPAIRS_AT_ONCE:
            self._later(answer)

    def _later(self, answer: Answer) -> None:
        self._trouble(
            "away",
            "the service at %s cannot take values now (%s); training goes on, values wait",
            self._job.url,
            answer.reason,
        )
        self._back_off(answer.retry_after, answered=answer.status > 0)

    def _ask_slowly(self, answer: Answer) -> None:
        self._trouble(
            f"slow {answer.status}",
            "the service at %s does not answer as one of ours that knows us (%s): look at url and "
            "token; training goes on, values wait",
            self._job.url,
            answer.reason,
        )
        if self._closing:
            self._gave_up = True
            return
        self._sleep(self._pace.slow_retry_seconds * self._jitter.uniform(0.5, 1.0))

    # Waiting and saying
    def _recovered(self) -> None:
        if self._failures:
            _log.info("snc: the service at %s takes values again", self._job.url)
        self._failures = 0
        self._failing_since = None
        self._said.discard("away")
        self.state = "sending"

    def _back_off(self, retry_after: float | None, *, answered: bool = False) -> None:
        """Wait with full jitter (or as told); at the end, not for a service gone before it."""
        now = time.monotonic()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        if self._closing is not None:
            gone = not answered and self._failing_since < self._closing_since
            if gone or now >= self._deadline:
                self._gave_up = True
                return
        bound = min(
            self._pace.first_backoff_seconds * 2.0 ** min(self._failures - 1, 16),
            self._pace.max_backoff_seconds,
        )
        self._sleep((retry_after or 0.0) + self._jitter.uniform(0.0, bound))

    def _sleep(self, seconds: float) -> None:
        """Wait ``seconds``, less if the job ends meanwhile; new rows do not cut it short."""
        self.state = "waiting"
        closing = self._closing
        until = min(time.monotonic() + seconds, self._deadline)
        while (left := until - time.monotonic()) > 0 and self._closing is closing:
            self._wait(left)

    def _trouble(self, kind: str, message: str, *values: object) -> None:
        """Count an error; say it the first time its kind occurs."""
        self.errors += 1
        self.last_error = message % values
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("snc: %s", self.last_error)

    def _take_over_policy(self, body: Mapping[str, Any]) -> None:
        """Keep a policy that came with an answer, once it proved to be one."""
        version, policy = body.get("policy_version"), body.get("policy")
        # Version 0 is the empty one that nobody set: the job's own stays in force.
        if policy is None or not _whole(version) or version in (0, self._policy_version):
            return
        try:
            self._policies.append((version, Policy.parse(policy)))
            self._policy_version = version
        except WireError as error:
            self._trouble("policy", "the service sent a policy that is none: %s", error)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


_Reaction: TypeAlias = Callable[[Delivery, Answer], None]
_LATER: Final = dict.fromkeys((0, 408, 429, 500, 502, 503, 504), Delivery._later)
_PATIENT: Final = frozenset({0, 200, 401, 403, 408, 429, 502, 503, 504})
_REACTIONS: Final[Mapping[int, _Reaction]] = {
    **_LATER,
    200: Delivery._acknowledged,
    404: Delivery._run_unknown,
    409: Delivery._conflict,
    **dict.fromkeys((400, 413, 415, 422), Delivery._refused),
}
_REACTIONS_TO_CREATE: Final[Mapping[int, _Reaction]] = _LATER
