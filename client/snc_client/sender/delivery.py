"""Delivery: pack rows into batches and send each until the service acknowledges it.

The tables at the end map each HTTP status to an action. Any other status means that the peer is not
this service or does not accept this job; it is tried again at long intervals.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

from snc_client.layer_row import LayerRow
from snc_client.sender.backoff import Backoff, Pace
from snc_client.sender.failures import Failures
from snc_client.sender.http import READ_SECONDS, Answer, HttpConnection
from snc_client.sender.inbox import Inbox, whole
from snc_client.sender.job_spec import Job
from snc_client.sender.queue.batching import Frame, Packer
from snc_client.sender.queue.interface import RowSource
from snc_service.wire import (
    COMMANDS_SEEN_HEADER,
    MAX_STEPS,
    MEDIA_TYPE,
    POLICY_VERSION_HEADER,
    Command,
    Policy,
)

State: TypeAlias = Literal["starting", "sending", "waiting", "closed"]

_log = logging.getLogger("snc")

REPAIRS_AT_ONCE = 3  # of one batch; after these the delivery backs off
MAX_TRIES = 20  # of one batch that the service answers but does not accept; then it is dropped
MIN_BATCH_BYTES = 64 * 1024


class Delivery:
    """Send the rows of one job, one batch at a time. `run` is the body of the sender thread.

    ``part``: other writers report the same steps of the run, so earlier steps are no new attempt.
    ``until_empty``: end when no rows are left; used for the rows of an earlier process. Other
    threads may read the counters, take policies from ``inbox`` and call `take_commands`.
    """

    def __init__(
        self,
        job: Job,
        rows: RowSource,
        pace: Pace,
        backoff: Backoff,
        connect: Callable[[], HttpConnection],
        *,
        until_empty: bool = False,
        part: bool = False,
        on_policy: Callable[[Policy], object] | None = None,
    ) -> None:
        self._job = job
        self._rows = rows
        self._pace = pace
        self._backoff = backoff
        self._connect = connect
        self._until_empty = until_empty
        self._part = part
        self.failures = Failures()
        self.inbox = Inbox(self.failures, on_policy)
        self._connection: HttpConnection | None = None
        self._packer: Packer | None = None
        self._created = False
        self._frame: Frame | None = None
        self._batch_bytes = pace.batch_bytes
        self._skipped = 0  # sequence numbers given up since the last batch
        self._undeclared = 0  # values dropped with them
        self._declared = 0  # of rows.dropped_values
        self._last_send = -1e9
        self.state: State = "starting"
        self.sent_values = 0
        self.refused_values = 0
        self.kept_values = 0  # left in the spool at the end, for a later process
        self._left_alone = False  # the service rejects the rows of an earlier process
        self.complete = False  # everything is acknowledged and the run is finished

    def take_commands(self) -> list[Command]:
        """Return the commands not yet taken, oldest first, and have them acknowledged."""
        taken = self.inbox.take_commands()
        if taken:
            self._backoff.wake()
        return taken

    @property
    def attempt(self) -> int:
        """Return the attempt of the newest batch; 0 before the service has answered."""
        return self._packer.attempt if self._packer is not None else 0

    @property
    def dropped_values(self) -> int:
        """Return how many values are lost: dropped from a full queue, refused, or too late."""
        return self._rows.dropped_values + self.refused_values

    def run(self) -> None:
        """Deliver until everything is sent after a requested end, or until the backoff gives up."""
        while not self._finished():
            try:
                self._advance()
            except Exception as error:  # top of the thread: logged and counted
                self.failures.record("bug", "the sender failed on its own: %r", error)
                self._backoff.back_off(None, answered=False)
        if self._connection is not None:
            self._connection.close()

    def abandon(self) -> None:
        """Stop. Rows that are not acknowledged stay in the spool, or are lost without one."""
        frame, self._frame = self._frame, None
        self.state = "closed"
        under_way = frame.num_values if frame is not None else 0
        end = None if self._until_empty else self._backoff.ending
        if self._rows.close(end, keep=not self.complete):
            self.kept_values = self._rows.kept_values + under_way
        else:
            self.refused_values += under_way

    def _finished(self) -> bool:
        if self._backoff.gave_up or self._left_alone:
            return True
        if not self._ending or not self._created or self._frame or len(self._rows):
            return False
        end = self._rows.end if self._until_empty else self._backoff.ending
        if end in (None, "continued"):
            self.complete = True
            return True
        body = json.dumps({"state": end}).encode()
        answer = self._request("POST", f"/runs/{self._job.run}/finish", body)
        if answer.status in _UNAVAILABLE:
            self._away(answer)
            return self._backoff.gave_up
        if answer.status not in (200, 204):
            self.failures.record("finish", "the service did not close the run (%s)", answer.reason)
        self.complete = True
        return True

    def _advance(self) -> None:
        """Do one step: connect, create the run, wait for rows, or send a batch."""
        if self._connection is None:
            self._connection = self._connect()
        if not self._created:
            self._create_run()
            return
        if self._frame is None and self._wait_for_rows():
            self._frame = self._pack()
        if self._frame is not None:
            self._send(self._frame)

    def _wait_for_rows(self) -> bool:
        """Wait until a batch is due; return False if the end came and no row is left."""
        while not self._due():
            if self._ending or self._backoff.gave_up:
                return False
            if len(self._rows):
                self._backoff.wait(self._linger_left())
            elif self.inbox.paused:
                # Without rows there are no acknowledgements: poll for the resume command.
                self._backoff.wait(self._pace.paused_seconds)
                if not len(self._rows) and not self._ending:
                    self._create_run()
            else:
                self._backoff.wait(None)
        return True

    def _due(self) -> bool:
        if not len(self._rows):
            return False
        return (
            self._ending
            or self._linger_left() <= 0
            or len(self._rows) >= self._pace.batch_steps
            or self._rows.num_bytes >= self._batch_bytes
        )

    @property
    def _ending(self) -> bool:
        return self._until_empty or self._backoff.ending is not None

    def _linger_left(self) -> float:
        return self._last_send + self._pace.linger_seconds - time.monotonic()

    def _pack(self) -> Frame | None:
        """Pack waiting rows of increasing steps, up to the limits of a batch."""
        assert self._packer is not None, "a run is created before its first batch is packed"
        rows: list[LayerRow] = []
        step, left = None, self._batch_bytes
        while len(rows) < MAX_STEPS and (row := self._rows.take(after=step, max_bytes=left)):
            rows.append(row)
            step, left = row.step, left - row.num_bytes
        if not rows:
            return None
        pushed_out = self._rows.dropped_values - self._declared
        frame = self._packer.pack(
            rows, skipped=self._skipped, dropped=pushed_out + self._undeclared
        )
        self._rows.packed(frame)
        self._declared += pushed_out
        self._skipped = self._undeclared = 0
        return frame

    def _request(
        self, method: str, path: str, content: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        assert self._connection is not None, "connected before anything is sent"
        seconds = self._backoff.seconds_left(READ_SECONDS)
        return self._connection.request(method, path, content, headers=headers, seconds=seconds)

    def _create_run(self) -> None:
        answer = self._request("POST", "/runs", json.dumps(self._job.request).encode())
        if answer.status in (400, 413, 415, 422) and len(self._job.request) > 1:
            self.failures.record(
                "run", "the service refuses the run's description (%s)", answer.reason
            )
            answer = self._request("POST", "/runs", json.dumps({"run": self._job.run}).encode())
        attempt, last_step = answer.body.get("attempt", 0), answer.body.get("last_step")
        if (
            answer.status not in (200, 201)
            or answer.body.get("run") != self._job.run
            or not whole(attempt)
            or not (last_step is None or whole(last_step))
        ):
            self._not_created(answer)
            return
        if self._packer is None:
            self._packer = Packer(self._job.writer, self._job.table.hash, self._job.metrics)
            self._frame = self._rows.resume(self._packer)
            self._packer.resume(attempt, None if self._part else last_step)
        if answer.status == 201:  # the run was deleted and created again: its commands count from 1
            self.inbox.forget_numbers(of_commands=True)
        if not self._created:
            self.inbox.forget_numbers(of_commands=False)
        self._created = True
        self.inbox.take_over(answer.body)
        self._recovered()

    def _put_layer_table(self) -> None:
        table = self._job.table
        path = f"/runs/{self._job.run}/layer-tables/{table.hash}"
        answer = self._request("PUT", path, table.body)
        if 200 <= answer.status < 300:
            self._repaired(answer)
        else:
            self._not_created(answer)

    def _send(self, frame: Frame) -> None:
        """Send the batch once and act on the status of the answer."""
        self._last_send = time.monotonic()
        headers = {
            "Content-Type": MEDIA_TYPE,
            POLICY_VERSION_HEADER: str(self.inbox.policy_version),
            COMMANDS_SEEN_HEADER: str(self.inbox.taken_command),
        }
        path = f"/runs/{self._job.run}/batches"
        answer = self._request("POST", path, frame.data, headers)
        if self.state == "closed":
            return  # `abandon` has counted this batch as lost
        frame.tries += answer.status not in _NOT_A_TRY
        if frame.tries >= MAX_TRIES:
            self._refused(frame, answer)
        else:
            _ON_BATCH.get(answer.status, Delivery._not_ours)(self, frame, answer)

    def _acknowledged(self, frame: Frame, answer: Answer) -> None:
        if not whole(answer.body.get("accepted")):
            self._not_ours(frame, answer)
            return
        self.sent_values += frame.num_values
        self._rows.settled()
        self._frame = None
        self.inbox.take_over(answer.body)
        self._recovered()

    def _refused(self, frame: Frame, answer: Answer) -> None:
        """Drop the batch; the next one declares its values as dropped."""
        self.failures.record("refused", "the service refuses a batch (%s): dropped", answer.reason)
        if answer.status == 413:
            self._batch_bytes = max(self._batch_bytes // 2, MIN_BATCH_BYTES)
        self.refused_values += frame.num_values
        self._undeclared += frame.num_values + frame.batch.dropped
        self._skipped += 1 + frame.batch.skipped
        self._rows.settled()
        self._frame = None

    def _conflict(self, frame: Frame, answer: Answer) -> None:
        kind = str(answer.body.get("type", "")).rpartition("/")[2]
        expected = answer.body.get("expected")
        if kind == "layer-table-unknown":
            self._put_layer_table()
        elif kind == "sequence-gap" and whole(expected) and expected <= frame.batch.seq:
            self._frame = frame.redeclared(expected)
            self._repaired(answer)
        elif kind == "sequence-conflict":
            self._refused(frame, answer)
        else:
            self._not_ours(frame, answer)

    def _run_unknown(self, _: Frame, answer: Answer) -> None:
        self._created = False
        self._repaired(answer)

    def _repaired(self, answer: Answer) -> None:
        """Retry at once; back off if this batch was repaired too often."""
        if self._frame is not None and self._frame.tries > REPAIRS_AT_ONCE:
            self._away(answer)

    def _not_created(self, answer: Answer) -> None:
        if answer.status in _UNAVAILABLE:
            self._away(answer)
        else:
            self._stranger(answer)

    def _later(self, _: Frame, answer: Answer) -> None:
        self._away(answer)

    def _not_ours(self, _: Frame, answer: Answer) -> None:
        self._stranger(answer)

    def _away(self, answer: Answer) -> None:
        self._wait_state()
        self.failures.record(
            "away",
            "the service at %s takes no values now (%s); training goes on and values wait",
            self._job.url,
            answer.reason,
        )
        self._backoff.back_off(answer.retry_after, answered=answer.status > 0)

    def _stranger(self, answer: Answer) -> None:
        self._wait_state()
        self.failures.record(
            f"stranger {answer.status}",
            "%s does not answer as a service that knows this job (%s): check url and token; "
            "training goes on and values wait",
            self._job.url,
            answer.reason,
        )
        if self._until_empty:
            self._left_alone = True  # so that the rows of this job do not wait behind them
        else:
            self._backoff.ask_slowly()

    def _wait_state(self) -> None:
        if self.state != "closed":
            self.state = "waiting"

    def _recovered(self) -> None:
        if self._backoff.failures_in_a_row:
            _log.info("snc: the service at %s takes values again", self._job.url)
        self._backoff.succeeded()
        self.failures.resolved("away")
        if self.state != "closed":
            self.state = "sending"


_UNAVAILABLE: Final = frozenset({0, 408, 429, 500, 502, 503, 504})
_ON_BATCH: Final[Mapping[int, Callable[[Delivery, Frame, Answer], None]]] = {
    **dict.fromkeys(_UNAVAILABLE, Delivery._later),
    200: Delivery._acknowledged,
    404: Delivery._run_unknown,
    409: Delivery._conflict,
    **dict.fromkeys((400, 413, 415, 422), Delivery._refused),
}
# These do not depend on the batch, so they do not count as tries. A batch may cause a 500.
_NOT_A_TRY: Final = frozenset({0, 200, 401, 403, 408, 429, 502, 503, 504})
