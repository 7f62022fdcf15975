"""Exceptions raised by signal handlers: recognized, as they must reach the training, or put off."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final

# What people and schedulers end a program with. Other handlers, such as that of torch's DataLoader
# for its workers, run where they strike.
PUT_OFF: Final = (signal.SIGINT, signal.SIGTERM)
ENOUGH: Final = 2  # signals: who sends the second one does not want to wait
MOST_SECONDS: Final = 10.0  # of the half minute that schedulers leave a program to save its state

_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}  # of the program, put off
_came: list[tuple[int, FrameType | None, float]] = []
_waits = False


@contextmanager
def signals_wait() -> Iterator[None]:
    """Call the program's handlers of `PUT_OFF` after the body: other processes wait for it.

    All handlers of signals that came are called, and the first exception of them is raised.
    Handlers run in the main thread only: elsewhere nothing is put off. What waits for others in the
    body ends where `insisted` says so. Handlers are set anew, which resets `signal.siginterrupt`.
    Cost: some microseconds.
    """
    global _waits
    if _waits or threading.current_thread() is not threading.main_thread():
        yield
        return
    _find_handlers()
    try:
        _waits = True
        for number in _handlers:
            signal.signal(number, _note)
        yield
    finally:
        try:
            _put_back()
        finally:  # a signal may have struck in between
            _put_back()
            _waits = False
            came = [*_came]
            _came.clear()
        _call(came)


def insisted() -> bool:
    """Return whether signals wait that the program must not put off any longer."""
    return len(_came) >= ENOUGH or (bool(_came) and time.monotonic() - _came[0][2] > MOST_SECONDS)


def _find_handlers() -> None:
    found = {}
    for number in PUT_OFF:
        handler = signal.getsignal(number)
        if handler is _note:  # an interrupt kept it from being put back
            handler = _handlers[number]
        if callable(handler):
            found[int(number)] = handler
    _handlers.clear()
    _handlers.update(found)


def _put_back() -> None:
    for number, handler in _handlers.items():
        signal.signal(number, handler)


def _call(came: Sequence[tuple[int, FrameType | None, float]]) -> None:
    raised: BaseException | None = None
    for number, frame, _ in came:
        try:
            _handlers[number](number, frame)
        except BaseException as error:
            raised = raised or error
    if raised is not None:
        raise raised


def _note(number: int, frame: FrameType | None) -> None:
    if _waits:
        _came.append((number, frame, time.monotonic()))
    else:  # it was not put back
        _handlers[number](number, frame)


def is_from_signal_handler(error: BaseException) -> bool:
    """Return whether a Python signal handler that is installed now raised ``error``.

    Handlers run in the main thread between any two instructions, so in the callback too: torch's
    DataLoader raises RuntimeError this way when a worker dies, and time limits use SIGALRM.
    Cost: one lookup per signal, so callers use it only after they caught an exception.
    """
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: object) -> CodeType | None:
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None
