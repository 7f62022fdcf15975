"""DetachedCallback: takes the place of a copied or unpickled SNCallback and measures nothing."""

from __future__ import annotations

import logging
from typing import Any

from snc_client.layers import Coverage

log = logging.getLogger("snc")


class DetachedCallback:
    """The copy of a callback by ``copy.deepcopy`` or ``pickle``: does nothing and warns once.

    Frameworks copy trainers and data sets that happen to hold a callback. A copy has no model to
    measure, no connection and no thread; the original continues.
    """

    def __init__(self) -> None:
        self.layers = Coverage((), (), 0, 0)
        self.latest: dict[str, Any] = {}
        self.run = None
        self.errors = self.attempt = 0
        self._said = False

    def step(self, *_: Any, **__: Any) -> None:
        """Do nothing; warn at the first call."""
        if not self._said:
            self._said = True
            log.warning(
                "snc: this callback is a copy and measures nothing: create another SNCallback "
                "for the copied model"
            )

    def close(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Ignore ``state``."""

    def __enter__(self) -> DetachedCallback:
        return self

    def __exit__(self, *_: object) -> None:
        pass
