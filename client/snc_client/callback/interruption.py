"""Recognizes exceptions raised by signal handlers: they must reach the training program."""

from __future__ import annotations

import signal
from types import CodeType


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
