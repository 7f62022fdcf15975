"""The way out of the training job: rows in, batches to the service, policies back.

`Sender.put` costs microseconds and never waits, fails or grows without bound; a daemon thread does
the rest. Losing values is possible (a bounded memory, a service that stays away) and always
counted: ``sent_values``, ``dropped_values``.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snc_client.layer_row import Floats, LayerRow
from snc_client.sender.backoff import EndState, Pace, Patience
from snc_client.sender.delivery import Delivery, State
from snc_client.sender.http import HttpConnection, hold_forks_while_importing
from snc_client.sender.job_spec import check_token, described
from snc_client.sender.queue.memory import QUEUE_BYTES, SPOOL_BYTES, RowQueue
from snc_client.sender.threads import CLOSE_SECONDS, Lifetime
from snc_service.wire import MAX_STEP, Command, LayerTable, Policy

if TYPE_CHECKING:
    import httpx

    from snc_client.sender.queue.spooled import SpooledRows

__all__ = ["Pace", "Sender"]


class Sender:
    """Report rows of one layer table to the service at ``url``; built at once, waits for nobody.

    ``policy`` is what the job was built with: the service adopts it if neither run nor project has
    one. ``run`` is drawn here when none is given, so it is known before the service answers.
    ``queue_bytes`` bounds the memory of waiting values; past it the oldest step is dropped and
    counted. With a ``spool`` folder rows go to local disk at once, at most ``spool_bytes`` of them,
    and what the service has not acknowledged when the process ends, however it ends, is sent by the
    next job with the same folder, or by `snc_client.sender.spool_replay.replay`.

    In a forked child every method does nothing. `put`, `take_policy`, `take_commands` and `close`
    are for one thread at a time. Raises `ValueError` for what could never be sent.
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
        self._patience = Patience(self._pace)
        self._rows: RowQueue | SpooledRows = RowQueue(queue_bytes)
        connect = partial(HttpConnection, url, token, transport)
        spooling = None
        if spool is not None:
            # Its locks exist on POSIX systems only, and without a spool nobody needs them.
            from snc_client.sender.spool_replay import Spooling

            spooling = Spooling(Path(spool), spool_bytes, job, self._pace, connect)
            self._rows = spooling.rows(self._rows, self._patience)
        self._delivery = Delivery(job, self._rows, self._pace, self._patience, connect)
        self._lifetime = Lifetime(
            self._delivery,
            self._patience,
            before=[] if spooling is None else [spooling.replay_own],
            beside=[] if spooling is None else [spooling.write, spooling.replay_others],
        )
        hold_forks_while_importing()
        self._lifetime.start()
        # A sender that is dropped without `close` still delivers what it was given.
        weakref.finalize(self, self._lifetime.ask, CLOSE_SECONDS, "finished").atexit = False

    def put(self, step: int, values: Floats, scalars: Mapping[str, float], time: float) -> None:
        """Hand over one step: ``values`` float32 [M, L] (copied), Unix seconds in ``time``.

        NaN and infinities are measurements; `snc_service.wire.ABSENT` is "not measured". A row that
        the wire could not carry (another shape, a negative step) is dropped and counted.
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
            self._patience.ring()

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return (version, policy) of the newest policy the service sent, once; else None."""
        return self._delivery.inbox.take_policy()

    def take_commands(self) -> list[Command]:
        """Return the commands that came since the last call, oldest first.

        The service sends a command until it hears that it was taken, so none is lost on the way.
        After a ``pause`` the service is asked for more although no rows are sent.
        """
        return [] if os.getpid() != self._pid else self._delivery.take_commands()

    @property
    def sent_values(self) -> int:
        """Return how many values the service has acknowledged."""
        return self._delivery.sent_values

    @property
    def dropped_values(self) -> int:
        """Return how many values are lost: pushed out of memory, refused, or too late."""
        return self._delivery.dropped_values

    @property
    def errors(self) -> int:
        """Return how many tries failed."""
        return self._delivery.troubles.errors

    @property
    def last_error(self) -> str | None:
        """Return one sentence on the newest failure."""
        return self._delivery.troubles.last_error

    @property
    def state(self) -> State:
        """Return ``starting``, ``sending``, ``waiting`` (for the service) or ``closed``."""
        return self._delivery.state

    def close(self, timeout: float = CLOSE_SECONDS, state: EndState = "finished") -> None:
        """Flush and finish the run, for at most ``timeout`` seconds; say once what was lost.

        A service that was gone before is tried once more only. Happens by itself at the exit of the
        interpreter; the second call does nothing.
        """
        self._lifetime.end(timeout, state)
