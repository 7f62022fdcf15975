"""Exceptions raised by signal handlers: recognized, as they must reach the training, or put off."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final

ENOUGH: Final = 2  # signals: who sends the second one does not want to wait

_put_off: dict[int, Callable[[int, FrameType | None], Any]] = {}  # the handlers of the program
_came: list[tuple[int, FrameType | None]] = []
_waits = False


@contextmanager
def signals_wait() -> Iterator[None]:
    """Call the program's signal handlers after the body, not in it: other processes wait for it.

    Handlers run in the main thread only: elsewhere nothing is put off. What waits for others in
    the body ends where `insisted` says so. Cost: some 20 us.
    """
    global _waits
    if _waits or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        _waits = True
        for number in map(int, signal.valid_signals()):
            handler = signal.getsignal(number)
            if handler is _note:  # an interrupt kept it from being put back
                continue
            _put_off.pop(number, None)
            if callable(handler):
                _put_off[number] = handler
                signal.signal(number, _note)
        yield
    finally:
        _waits = False
        for number, handler in _put_off.items():
            signal.signal(number, handler)
        came = [*_came]
        _came.clear()
        for number, frame in came:
            _put_off[number](number, frame)


def insisted() -> bool:
    """Return whether so many signals wait that the program must not wait any more."""
    return len(_came) >= ENOUGH


def _note(number: int, frame: FrameType | None) -> None:
    if _waits:
        _came.append((number, frame))
    else:  # it comes while the handlers are put back
        _put_off[number](number, frame)


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
