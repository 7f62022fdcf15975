"""SpoolReplay: the spool of a sender, and the replay of logs that earlier processes left."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from snc_client.sender.backoff import Backoff, Pace
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
    """How many values of one earlier process were sent, dropped and kept."""

    run: str
    sent_values: int
    dropped_values: int
    kept_values: int
    last_error: str | None


class SpoolReplay:
    """The spool ``root`` of one job. Raises `ValueError` if the folder cannot be written."""

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
        self._backoff = Backoff(pace)

    def rows(self, memory: RowQueue, backoff: Backoff) -> SpooledRows:
        """Return the queue of the job: rows pass through ``memory`` into a log of their own."""
        self._backoff = backoff
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
            wake=backoff.wake,
            batch_steps=self._pace.batch_steps,
        )
        return self._rows

    def write(self) -> None:
        """Move rows from memory to the log until closed; runs in a thread of its own."""
        assert self._rows is not None, "rows are made before the threads start"
        self._rows.write_until_closed()

    def replay_own(self) -> None:
        """Deliver the rows that earlier processes of this run left: their steps come first."""
        self._replay(self._backoff, lambda run: run == self._job.run)

    def replay_others(self) -> None:
        """Deliver the rows that other runs left, concurrently with those of the job."""
        self._replay(Backoff(self._pace), lambda run: run != self._job.run)

    def _replay(self, backoff: Backoff, wanted: Callable[[str], bool]) -> None:
        deliver_left_behind(
            self._root,
            self._job.url,
            self._connect,
            backoff=backoff,
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
    """Deliver the rows that ended processes left below ``root``; `snc replay` calls this.

    Takes at most ``timeout`` seconds. Folders of running jobs are skipped. Raises `ValueError` for
    an invalid url and for a token that an HTTP header cannot carry.
    """
    check_url(url)
    check_token(token)
    backoff = Backoff(Pace())
    backoff.end(timeout, "finished")
    return deliver_left_behind(
        root,
        shown_url(url),
        partial(HttpConnection, url, token, transport),
        backoff=backoff,
        pace=Pace(),
        max_bytes=max_bytes,
        wanted=lambda run: True,
    )


def deliver_left_behind(
    root: Path,
    url: str,
    connect: Callable[[], HttpConnection],
    *,
    backoff: Backoff,
    pace: Pace,
    max_bytes: int,
    wanted: Callable[[str], bool],
) -> list[Replayed]:
    """Deliver every log below ``root`` whose process has ended and whose run is ``wanted``.

    Returns when all logs are empty or ``backoff`` gives up. A log that is acknowledged to its end
    is deleted. Each keeps its writer and sequence numbers, so no batch is stored twice.
    """
    done = []
    for job, spool in spool_directory.left_behind(root, max_bytes, wanted):
        if backoff.gave_up:
            spool.close()
            continue
        rows = SpooledRows(RowQueue(0), partial(_same, spool), job.metrics, job.shape[1])
        rows.opened()
        delivery = Delivery(replace(job, url=url), rows, pace, backoff, connect, until_empty=True)
        delivery.run()
        delivery.abandon()
        done.append(
            Replayed(
                job.run,
                delivery.sent_values,
                delivery.dropped_values,
                delivery.kept_values,
                delivery.failures.last_error,
            )
        )
    return done


def _same(spool: Spool) -> Spool:
    return spool
