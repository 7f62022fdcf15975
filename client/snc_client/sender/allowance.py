"""Allowance: what the answers of a service may cost the processor of a training job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

PAUSES: Final = 50.0  # times the cost: at most 2 % of a processor in the long run


class Allowance:
    """Costly work puts off the next: after t seconds of processor time none is due for 50 t.

    Such work runs in the sender's thread, but it takes the interpreter from the training. It is
    costly only when the service means harm: a policy of 10 entries is due again after 0.2 s.
    ``processor`` and ``clock`` return seconds of processor time of this thread, and elapsed ones.
    Not for several threads at once.
    """

    def __init__(
        self,
        processor: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processor = processor
        self._clock = clock
        self._due_at = float("-inf")

    @property
    def due(self) -> bool:
        """Return whether enough time has passed since the work before."""
        return self._clock() >= self._due_at

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the processor time of the block, however it ends."""
        begun = self._processor()
        try:
            yield
        finally:
            self._due_at = self._clock() + PAUSES * (self._processor() - begun)
