"""TrainingRun: the SNCallback of one training inside a framework, and the state to resume it."""

from __future__ import annotations

import atexit
import math
import numbers
import os
import re
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snc_client.callback import SNCallback
from snc_service.wire import Command

WORST_RATIO = "snc/worst_ratio"
STATE_FILE = "snc_state.pt"


class TrainingRun:
    """Builds SNCallback when a framework starts to train, and closes it when the training ends.

    ``keywords`` are SNCallback's own. The service's commands are kept for the framework to obey,
    unless the user handles them with ``on_command``. A training without a reported end, such as
    an exception in a framework without an event for it, ends as failed when the adapter trains
    again or when the process exits.
    """

    def __init__(self, keywords: Mapping[str, Any]) -> None:
        self._commands: deque[Command] = deque()
        self._keywords = {"on_command": self._commands.append, **keywords}
        self._loaded: Mapping[str, Any] | None = None
        self._fail: weakref.finalize[..., TrainingRun] | None = None
        self.callback: SNCallback | None = None

    def begin(self, model: nn.Module, optimizer: Any, config: Mapping[str, Any]) -> SNCallback:
        """Build the callback, and let it continue from the state that was loaded before."""
        self.abandon()
        keywords, state = {"config": config, **self._keywords}, self._loaded
        if state is not None and keywords.get("run") is None:
            keywords["run"] = state["run"]
        self.callback, self._loaded = SNCallback(model, optimizer=optimizer, **keywords), None
        if state is not None:
            self.callback.load_state_dict(state)
        self._fail = weakref.finalize(self, self.callback.close, failed=True)
        # The callback has a handler of its own: the one registered last runs first.
        atexit.register(self._fail)
        return self.callback

    def abandon(self) -> None:
        """End as failed what an exception has left open: call it before a state is loaded."""
        if self._fail is not None:
            self._fail()
            self._fail = None

    def end(self, error: BaseException | None = None) -> None:
        """Deliver the waiting rows and finish the run, as failed if there is an ``error``."""
        if self._fail is None or self.callback is None:
            return
        self._fail.detach()
        atexit.unregister(self._fail)
        self._fail = None
        self.callback.close(failed=error is not None)

    def state_dict(self) -> dict[str, Any]:
        """Return SNCallback's state with the run's id; before `begin` the loaded state."""
        if self._loaded is not None or self.callback is None:
            return dict(self._loaded or {})
        return {**self.callback.state_dict(), "run": self.callback.run}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``: at `begin`, or at once where the training has begun."""
        if self._fail is not None and self.callback is not None:
            self.callback.load_state_dict(state)
        elif state:
            self._loaded = state

    def save(self, folder: str | os.PathLike[str], *, write: bool = True) -> None:
        """Write the state beside a checkpoint; on other ranks (``write`` False) only compute it."""
        state = self.state_dict()
        if write and os.path.isdir(folder):
            torch.save(state, os.path.join(folder, STATE_FILE))

    def load(self, folder: str | os.PathLike[str]) -> bool:
        """Continue from the file of `save`; return whether there is one."""
        path = os.path.join(folder, STATE_FILE)
        if not os.path.isfile(path):
            return False
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return True

    def report(self, logs: Mapping[str, Any]) -> None:
        """Add the framework's logged numbers to the row of the last step; skip other values."""
        if self.callback is not None:
            theirs = {k: v for k, v in logs.items() if _is_number(v) and k != WORST_RATIO}
            self.callback.step(**{scalar_name(k): v for k, v in theirs.items()})

    def worst_ratio(self) -> float | None:
        """Return the largest sigma / threshold of the newest measurement; None without one."""
        if self.callback is None:
            return None
        ratios = [reading["ratio"] for reading in self.callback.latest.values()]
        return max((r for r in ratios if r is not None and not math.isnan(r)), default=None)

    def take_commands(self) -> list[str]:
        """Return the actions that the service has requested since the last call."""
        taken: list[str] = [command.action for command in self._commands]
        self._commands.clear()
        return taken


def scalar_name(name: str) -> str:
    """Return the service's name for a value that a framework logs: ``eval/Loss``: eval_loss."""
    plain = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
    plain = plain if plain[:1].isalpha() else f"x_{plain}"
    return "lr" if plain == "learning_rate" else plain[:63]


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
