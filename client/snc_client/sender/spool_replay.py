"""What a spool adds to a sender: its own log, and the logs that earlier processes left there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from snc_client.sender.backoff import Pace, Patience
from snc_client.sender.delivery import Delivery
from snc_client.sender.http import HttpConnection
from snc_client.sender.job_spec import Job, check_token, check_url, shown_url
from snc_client.sender.queue import spool_directory
from snc_client.sender.queue.memory import SPOOL_BYTES, RowQueue
from snc_client.sender.queue.spooled import SpooledRows
from snc_client.spool import Spool

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Replayed:
    """What became of the values that one earlier process left."""

    run: str
    sent_values: int
    dropped_values: int
    kept_values: int
    last_error: str | None


class Spooling:
    """One job's use of the spool ``root``. Raises `ValueError` if nothing can be written there."""

    def __init__(
        self,
        root: Path,
        max_bytes: int,
        job: Job,
        pace: Pace,
        connect: Callable[[], HttpConnection],
    ) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"spool must be a folder that can be made, got {error}") from None
        if not os.access(root, os.W_OK | os.X_OK):
            raise ValueError(f"spool must be a folder that can be written, got {str(root)!r}")
        self._root = root
        self._max_bytes = max_bytes
        self._job = job
        self._pace = pace
        self._connect = connect
        self._rows: SpooledRows | None = None
        self._patience = Patience(pace)

    def rows(self, memory: RowQueue, patience: Patience) -> SpooledRows:
        """Return the job's rows: through ``memory`` into a log of their own."""
        self._patience = patience
        self._rows = SpooledRows(
            memory,
            partial(
                spool_directory.create,
                spool_directory.new_folder(self._root, self._job),
                self._job,
                self._max_bytes,
            ),
            self._job.metrics,
            self._job.shape[1],
            wake=patience.ring,
            batch_steps=self._pace.batch_steps,
        )
        return self._rows

    def write(self) -> None:
        """Move rows from memory to the log, in a thread of its own."""
        assert self._rows is not None, "rows are made before the threads start"
        self._rows.write_until_closed()

    def replay_own(self) -> None:
        """Deliver what earlier processes of this run left: their steps come before ours."""
        self._replay(self._patience, lambda run: run == self._job.run)

    def replay_others(self) -> None:
        """Deliver what other runs left, beside the job's own values."""
        self._replay(Patience(self._pace), lambda run: run != self._job.run)

    def _replay(self, patience: Patience, wanted: Callable[[str], bool]) -> None:
        deliver_left_behind(
            self._root,
            self._job.url,
            self._connect,
            patience=patience,
            pace=self._pace,
            max_bytes=self._max_bytes,
            wanted=wanted,
        )


def replay(
    root: Path,
    url: str,
    *,
    token: str | None = None,
    timeout: float = 60.0,
    max_bytes: int = SPOOL_BYTES,
    transport: httpx.BaseTransport | None = None,
) -> list[Replayed]:
    """Deliver what ended processes left below ``root``, within ``timeout`` seconds: `snc replay`.

    Folders of running jobs are passed over. Raises `ValueError` for a url that is none and for a
    token that no header can carry.
    """
    check_url(url)
    check_token(token)
    patience = Patience(Pace())
    patience.end(timeout, "finished")
    return deliver_left_behind(
        root,
        shown_url(url),
        partial(HttpConnection, url, token, transport),
        patience=patience,
        pace=Pace(),
        max_bytes=max_bytes,
        wanted=lambda run: True,
    )


def deliver_left_behind(
    root: Path,
    url: str,
    connect: Callable[[], HttpConnection],
    *,
    patience: Patience,
    pace: Pace,
    max_bytes: int,
    wanted: Callable[[str], bool],
) -> list[Replayed]:
    """Deliver every log below ``root`` whose process has gone and whose run is ``wanted``.

    Goes on until all are empty or ``patience`` ends; a log acknowledged to its end is deleted. Each
    keeps its writer and numbers, so what had arrived is not stored twice.
    """
    done = []
    for job, spool in spool_directory.left_behind(root, max_bytes, wanted):
        if patience.gave_up:
            spool.close()
            continue
        rows = SpooledRows(RowQueue(0), partial(_same, spool), job.metrics, job.shape[1])
        rows.opened()
        delivery = Delivery(replace(job, url=url), rows, pace, patience, connect, until_empty=True)
        delivery.run()
        delivery.abandon()
        done.append(
            Replayed(
                job.run,
                delivery.sent_values,
                delivery.dropped_values,
                delivery.kept_values,
                delivery.troubles.last_error,
            )
        )
    return done


def _same(spool: Spool) -> Spool:
    return spool
