"""OuterEdge: keeps exceptions of the callback out of the training, and counts them."""

from __future__ import annotations

import logging
from types import TracebackType

from snc_client.callback.guard.settings import GuardStopped
from snc_client.callback.interruption import is_from_signal_handler
from snc_client.callback.readback.latest import ThresholdBreached

log = logging.getLogger("snc")


class OuterEdge:
    """A context that counts and logs exceptions, except those that stop the training on purpose.

    An exception of a signal handler is the training's own, and reaches it.
    """

    def __init__(self) -> None:
        self.errors = 0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, ThresholdBreached | GuardStopped):
            return False
        self.errors += 1
        if is_from_signal_handler(error):
            return False
        if self.errors == 1:
            log.error(
                "snc: a step was not measured; training goes on, errors are counted", exc_info=error
            )
        return True
