"""Commands: passes commands of the service to the user's function at a step boundary."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from snc_client.sender import Sender
from snc_service.wire import Command

OnCommand: TypeAlias = Callable[[Command], object]

log = logging.getLogger("snc")


class Commands:
    """Commands that wait for the user's function ``obey``; if it is None they are only logged.

    An exception of ``obey`` reaches the training loop: the user may leave the loop that way. The
    commands after the one at which it was raised keep waiting.
    """

    def __init__(self, obey: OnCommand | None) -> None:
        if not (obey is None or callable(obey)):
            raise ValueError(f"on_command must be a function of a command, got {obey!r}")
        self._obey = obey
        self._waiting: deque[Command] = deque()

    def add(self, commands: Iterable[Command]) -> None:
        """Add commands that have come another way than through a sender."""
        self._waiting.extend(commands)

    def take(self, sender: Sender | None) -> list[Command]:
        """Return and remove the waiting commands, oldest first; ``obey`` does not get them."""
        taken = [*self._waiting, *(sender.take_commands() if sender is not None else ())]
        self._waiting.clear()
        return taken

    def obey(self, sender: Sender | None) -> None:
        """Pass the waiting commands to the user's function, oldest first."""
        if sender is not None:
            self._waiting.extend(sender.take_commands())
        while self._waiting:
            command = self._waiting.popleft()
            reason = f" ({command.reason})" if command.reason else ""
            if self._obey is None:
                log.warning("snc: %s was asked for%s: on_command= is not set, so nothing obeys",
                            command.action, reason)  # fmt: skip
            else:
                log.info("snc: %s was asked for%s", command.action, reason)
                self._obey(command)
