"""A command to a running job, carried by the acknowledgement of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from snc_service.wire.checks import MAX_STEP, WireError, printable, shown

CommandAction: TypeAlias = Literal["checkpoint", "pause", "resume", "stop"]
COMMAND_ACTIONS: Final[tuple[str, ...]] = get_args(CommandAction)
MAX_COMMANDS = 64  # in one acknowledgement
COMMANDS_SEEN_HEADER = "SNC-Commands-Seen"  # the newest command id that the job has received


@dataclass(frozen=True)
class Command:
    """``id`` grows by one per run; ``reason`` may be empty."""

    id: int
    action: CommandAction
    reason: str = ""

    @classmethod
    def parse(cls, value: object) -> Command:
        """Read ``{"id", "action", "reason"?}``; further keys are ignored. Raises `WireError`."""
        if not isinstance(value, Mapping):
            raise WireError("command", f"must be an object, got {shown(value)}")
        id_, action, reason = value.get("id"), value.get("action"), value.get("reason", "")
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 < id_ <= MAX_STEP:
            raise WireError("id", f"must be a whole number > 0, got {shown(id_)}")
        if action not in COMMAND_ACTIONS:
            raise WireError(
                "action", f"must be one of {', '.join(COMMAND_ACTIONS)}, got {shown(action)}"
            )
        if reason != "":
            printable(reason, "reason", max_bytes=256)
        return cls(id_, action, reason)

    @classmethod
    def parse_all(cls, value: object) -> tuple[Command, ...]:
        """Read the ``commands`` list of an acknowledgement. Raises `WireError`."""
        if not isinstance(value, list) or len(value) > MAX_COMMANDS:
            raise WireError("commands", f"must be up to {MAX_COMMANDS} objects, got {shown(value)}")
        return tuple(cls.parse(each) for each in value)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"id": self.id, "action": self.action, "reason": self.reason}
