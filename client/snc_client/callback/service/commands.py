"""Commands from the service: handed to what the user set for them, at a step boundary."""

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
    """What was asked of this job and not yet given to ``obey``, which may be None: only said then.

    Whatever ``obey`` raises is the user's own way to leave the loop, and reaches it; commands that
    came with the one it raised at stay here.
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
        """Return what waits, oldest first; nothing of it is given to ``obey`` any more."""
        taken = [*self._waiting, *(sender.take_commands() if sender is not None else ())]
        self._waiting.clear()
        return taken

    def obey(self, sender: Sender | None) -> None:
        """Give what waits to the user's function, one after the other."""
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
