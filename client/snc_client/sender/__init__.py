"""Send the rows of a training job to the service, and receive policies and commands.

`Sender.put` costs microseconds. It never waits or raises, and its memory is bounded; daemon threads
do the network and disk work. Values can be lost when memory is full or the service stays
unreachable. Every loss is counted: ``sent_values``, ``dropped_values``.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snc_client.layer_row import Floats, LayerRow
from snc_client.sender.backoff import Backoff, EndState, Pace
from snc_client.sender.delivery import Delivery, State
from snc_client.sender.http import HttpConnection, hold_forks_while_importing
from snc_client.sender.job_spec import check_token, described
from snc_client.sender.queue.memory import QUEUE_BYTES, SPOOL_BYTES, RowQueue
from snc_client.sender.threads import CLOSE_SECONDS, SenderThreads
from snc_service.wire import MAX_STEP, Command, LayerTable, Policy

if TYPE_CHECKING:
    import httpx

    from snc_client.sender.queue.spooled import SpooledRows

__all__ = ["Pace", "Sender"]


class Sender:
    """Report rows of one layer table to the service at ``url``. The constructor does not wait.

    ``on_policy`` is called in the sender's thread with each policy before `take_policy` returns it.
    ``part``: another writer reports the same steps of the run, with other layers.
    With ``start`` False nothing happens before `start`, and the caller must end it.
    ``after`` is the sender that reported the run so far, with other layers: it delivers its rows,
    then this one begins. Policies, commands and counts go on.
    ``policy`` is the job's own: the service adopts it if neither the run nor its project has one.
    Without ``run`` an id is drawn here, so it is known before the service answers. ``queue_bytes``
    bounds the memory of waiting values; beyond it the oldest step is dropped and counted. With a
    ``spool`` folder rows are written to local disk at once, up to ``spool_bytes``. Rows that the
    service has not acknowledged when the process ends, even by a crash, are sent by the next job
    with the same folder, or by `snc_client.sender.spool_replay.replay`.

    In a forked child every method does nothing. `put`, `take_policy`, `take_commands` and `close`
    are for one thread at a time. Raises `ValueError` for arguments that
    the wire format or HTTP cannot carry.
    """

    def __init__(
        self,
        url: str,
        *,
        table: LayerTable,
        metrics: tuple[str, ...],
        run: str | None = None,
        name: str | None = None,
        project: str | None = None,
        token: str | None = None,
        config: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        transport: httpx.BaseTransport | None = None,
        queue_bytes: int = QUEUE_BYTES,
        spool: str | os.PathLike[str] | None = None,
        spool_bytes: int = SPOOL_BYTES,
        pace: Pace | None = None,
        after: Sender | None = None,
        part: bool = False,
        on_policy: Callable[[Policy], object] | None = None,
        start: bool = True,
    ) -> None:
        check_token(token)
        job = described(
            url,
            table=table,
            metrics=metrics,
            run=run,
            name=name,
            project=project,
            config=config,
            policy=policy,
        )
        self.run = job.run
        self._pid = os.getpid()
        self._shape, self._metrics = job.shape, job.metrics
        self._pace = pace or Pace()
        self._backoff = Backoff(self._pace)
        self._rows: RowQueue | SpooledRows = RowQueue(queue_bytes)
        connect = partial(HttpConnection, url, token, transport)
        spool_replay = None
        if spool is not None:
            # Imported here because its file locks exist on POSIX systems only.
            from snc_client.sender.spool_replay import SpoolReplay

            spool_replay = SpoolReplay(Path(spool), spool_bytes, job, self._pace, connect)
            self._rows = spool_replay.rows(self._rows, self._backoff)
        self._before = after
        self._delivery = Delivery(
            job, self._rows, self._pace, self._backoff, connect, part=part, on_policy=on_policy
        )
        if after is not None:
            after.request_end("continued")
            self._delivery.inbox = after._delivery.inbox
        self._threads: SenderThreads = SenderThreads(
            self._delivery,
            self._backoff,
            before=[] if spool_replay is None else [spool_replay.replay_own],
            beside=[] if spool_replay is None else [spool_replay.write, spool_replay.replay_others],
            after=None if after is None else after._threads,
        )
        self._ends_alone = start
        if start:
            self.start()
            # A sender that is garbage-collected without `close` still delivers its rows.
            end = partial(self._threads.request_end, CLOSE_SECONDS, "finished")
            weakref.finalize(self, end).atexit = False

    def start(self) -> None:
        """Start the threads: the run is created, and rows are sent."""
        hold_forks_while_importing()
        self._threads.start(at_exit=self._ends_alone)

    def put(self, step: int, values: Floats, scalars: Mapping[str, float], time: float) -> None:
        """Hand over one step: ``values`` float32 [M, L] (copied), Unix seconds in ``time``.

        NaN and infinities are measurements; `snc_service.wire.ABSENT` is "not measured". A row that
        the wire format cannot carry (another shape, a negative step) is dropped and counted.
        """
        if os.getpid() != self._pid:
            return
        if values.shape != self._shape or not 0 <= step <= MAX_STEP or not 0 <= time < 1e10:
            self._rows.refuse(values.size + len(scalars))
            return
        row = LayerRow(
            int(step), self._metrics, values.astype(np.float32), dict(scalars), float(time)
        )
        waiting = self._rows.put(row)
        if waiting == 1 or waiting == self._pace.batch_steps:
            self._backoff.wake()

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return (version, policy) of the newest policy the service sent, once; else None."""
        return self._delivery.inbox.take_policy()

    def take_commands(self) -> list[Command]:
        """Return the commands received since the last call, oldest first.

        The service repeats a command until the client reports that it was taken. After a ``pause``
        the sender polls the service for commands although no rows are sent.
        """
        return [] if os.getpid() != self._pid else self._delivery.take_commands()

    @property
    def attempt(self) -> int:
        """Return the attempt of the newest batch; 0 before the service has answered."""
        return self._delivery.attempt

    @property
    def sent_values(self) -> int:
        """Return how many values the service has acknowledged."""
        return self._delivery.sent_values + (self._before.sent_values if self._before else 0)

    @property
    def dropped_values(self) -> int:
        """Return how many values are lost: dropped from a full queue, refused, or too late."""
        earlier = self._before.dropped_values if self._before else 0
        return self._delivery.dropped_values + earlier

    @property
    def delivered(self) -> bool:
        """Return whether everything is acknowledged, after an end that was requested."""
        return self._delivery.complete

    @property
    def errors(self) -> int:
        """Return how many failures were recorded."""
        return self._delivery.failures.errors

    @property
    def last_error(self) -> str | None:
        """Return one sentence on the newest failure."""
        return self._delivery.failures.last_error

    @property
    def state(self) -> State:
        """Return ``starting``, ``sending``, ``waiting`` (for the service) or ``closed``."""
        return self._delivery.state

    def request_end(self, state: EndState, timeout: float = math.inf) -> None:
        """Flush and end in the background, in at most ``timeout`` seconds; return at once."""
        self._threads.request_end(timeout, state)

    def close(self, timeout: float = CLOSE_SECONDS, state: EndState = "finished") -> None:
        """Flush and finish the run, for at most ``timeout`` seconds; log the losses once.

        A service that was already unreachable is tried only once more. The exit of the interpreter
        does the same; a second call does nothing.
        """
        self._threads.end(timeout, state)
