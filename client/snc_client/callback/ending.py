"""Ending: what a callback does at its end, whichever way a training ends."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing
import multiprocessing.util
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from snc_client.callback.collector import RowCollector
from snc_client.callback.model.named_models import parts
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.service.reporter import Reporter
from snc_client.sender.backoff import EndState

log = logging.getLogger("snc")

CLOSE_SECONDS = 5.0
COLLECT_SECONDS = 0.5  # for the last rows of a callback that nobody closed

_open: weakref.WeakSet[Ending] = weakref.WeakSet()
_leaving: list[Reporter] = []
_exit_status: object = None


class Ending:
    """Ends a callback once: its hooks are removed, its last rows delivered, its run is closed.

    A callback that nobody closes ends at the exit of the interpreter, or when it is collected as
    garbage with this object. After an exception that nobody caught, or a status of ``sys.exit``,
    its run ends as failed.
    """

    def __init__(
        self,
        model: nn.Module,
        removals: Sequence[Callable[[], object]],
        monitor: LayerMonitor,
        collector: RowCollector,
        reporter: Reporter,
    ) -> None:
        self.ended = False
        self._models = [weakref.ref(each) for each in parts(model)]
        self._removals = removals
        self._monitor = monitor
        self._collector = collector
        self._reporter = reporter
        self._pid = os.getpid()
        for other in list(_open):
            self._replace(other)
        _open.add(self)
        _watch_exit()

    def end(self, timeout: float, state: EndState) -> None:
        """End it in at most ``timeout`` seconds; later calls do nothing."""
        deadline = time.monotonic() + timeout
        if self._stop(timeout / 2):
            self._reporter.close(_left(deadline), state)

    def interrupted(self) -> None:
        """Deliver the last rows and say ``failed``; the callback goes on if the training does."""
        self._collector.drain(COLLECT_SECONDS)
        self._reporter.fail()

    def _stop(self, seconds: float) -> bool:
        """Remove the hooks and collect the last rows; return False if that was done before."""
        if self.ended or os.getpid() != self._pid:
            return False
        self.ended = True
        _open.discard(self)
        for remove in self._removals:
            remove()
        self._monitor.close()
        try:
            self._collector.drain(seconds)
        except Exception:  # the outer edge: a device that has failed must not end the program
            log.exception("snc: the last rows are lost")
        return True

    def __del__(self) -> None:
        # Without a wait for the network: this runs wherever the collector does.
        if self._stop(COLLECT_SECONDS):
            self._leave("failed" if _is_failure(_exit_status) else "finished")

    def _leave(self, state: EndState) -> None:
        """Let the sender deliver in the background; the interpreter waits for it at its exit."""
        self._reporter.request_end(state)
        _leaving[:] = [each for each in _leaving if not each.delivered] + [self._reporter]

    def _replace(self, other: Ending) -> None:
        """Take over from ``other`` if it is on the same model, or writes the same rows."""
        reporter = other._reporter
        one_run = reporter.writes_to(self._reporter)
        if [each() for each in other._models] == [each() for each in self._models]:
            log.info("snc: another callback on this model takes the place of the one before")
            if other._stop(COLLECT_SECONDS):
                other._leave("continued" if one_run else "finished")
        elif one_run and set(other._monitor.latest.names) & set(self._monitor.latest.names):
            log.warning(
                "snc: another callback reports layers of the same names as run %s: the former "
                "measures and holds, and reports no more. For several models in one run give "
                "SNCallback(model={prefix: module, ...})",
                reporter.run,
            )
            other._collector.drain(COLLECT_SECONDS)
            other._leave("continued")


def failed_by(error: BaseException | None) -> bool:
    """Return whether a training that ``error`` leaves has failed: not by ``sys.exit(0)``."""
    if isinstance(error, SystemExit):
        return _is_failure(error.code)
    return error is not None and not isinstance(error, GeneratorExit)


def _is_failure(status: object) -> bool:
    return status not in (None, 0, False)


def _watch_exit() -> None:
    """Be called at exit before the senders, and learn of the status of ``sys.exit``."""
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    _wrap_exit()
    _watch_cells()
    if multiprocessing.parent_process() is not None:
        _watch_child()


def _at_exit() -> None:
    uncaught = getattr(sys, "last_value", None) is not None and _notebook() is None
    state: EndState = "failed" if uncaught or _is_failure(_exit_status) else "finished"
    deadline = time.monotonic() + CLOSE_SECONDS
    reporters = [*_leaving, *(each._reporter for each in list(_open))]
    for each in list(_open):
        each._stop(COLLECT_SECONDS)
    for reporter in reporters:  # all begin, so that they share the time
        reporter.hurry(state, _left(deadline))
    for reporter in reporters:
        reporter.close(_left(deadline), state)


def training_goes_on() -> None:
    """Forget the status of a ``sys.exit`` that somebody has caught."""
    global _exit_status
    _exit_status = None


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)


@functools.cache
def _watch_child() -> None:
    """End before a child of ``multiprocessing`` does: it leaves without the functions of atexit."""
    multiprocessing.util.Finalize(None, _at_exit, exitpriority=100)


@functools.cache
def _wrap_exit() -> None:
    """Note the status of ``sys.exit``: the interpreter shows it to nobody."""
    leave = sys.exit

    @functools.wraps(leave)
    def exit_(status: Any = None, /) -> None:
        global _exit_status
        if threading.current_thread() is threading.main_thread():
            _exit_status = status
        leave(status)

    sys.exit = exit_  # type: ignore[assignment]


@functools.cache
def _watch_cells() -> None:
    """In a notebook, say ``failed`` where a cell was interrupted or raised."""
    shell = _notebook()
    if shell is not None:
        shell.events.register("post_run_cell", _cell_has_run)


def _cell_has_run(result: Any) -> None:
    if getattr(result, "error_in_exec", None) is not None:
        for each in list(_open):
            each.interrupted()


def _notebook() -> Any:
    """Return the running IPython shell, None elsewhere."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()
