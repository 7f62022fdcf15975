"""Several processes that serve one port: they are started, replaced when they die, and stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final, TypeVar

RESTART_SECONDS: Final = 1.0  # between a death and the next start
STOP_SECONDS: Final = 30.0  # for all workers to end, before they are killed

S = TypeVar("S")
log = logging.getLogger(__name__)


def supervise(number: int, serve: Callable[[S], int], settings: S) -> int:
    """Keep ``number`` processes running ``serve(settings)`` until SIGINT or SIGTERM.

    One that ends by itself is replaced. All end when this process does, whatever ends it. Returns
    an exit status: 1 if a worker had to be killed in the end.
    """
    stopped = threading.Event()
    # A signal handler may write to a pipe; the loop waits for the pipe and the workers together.
    heard, said = multiprocessing.Pipe(duplex=False)

    def stop(sig: int, frame: FrameType | None) -> None:
        if not stopped.is_set():
            stopped.set()
            said.send(None)

    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, stop)
    context = multiprocessing.get_context("spawn")  # no state of this process

    def started() -> BaseProcess:
        process = context.Process(target=_work, args=(serve, settings), name="snc-worker")
        process.start()
        return process

    running = [started() for _ in range(number)]
    while not stopped.is_set():
        wait([heard, *(each.sentinel for each in running)])
        dead = [each for each in running if each.exitcode is not None]
        if not dead or stopped.is_set():
            continue
        for each in dead:
            log.error("a worker ended with status %s and is replaced", each.exitcode)
        if not stopped.wait(RESTART_SECONDS):
            running = [each for each in running if each.exitcode is None]
            running += [started() for _ in dead]
    return _stop(running)


def _stop(running: list[BaseProcess]) -> int:
    for each in running:
        each.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for each in running:
        each.join(max(0.0, deadline - time.monotonic()))
    late = [each for each in running if each.exitcode is None]
    for each in late:
        each.kill()
        each.join()
    return 1 if late else 0


def _work(serve: Callable[[S], int], settings: S) -> None:
    threading.Thread(target=_end_with_parent, name="snc-parent", daemon=True).start()
    sys.exit(serve(settings))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
