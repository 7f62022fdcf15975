"""Inbox: policies and commands received from the service, checked, each delivered once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from snc_client.sender.allowance import Allowance
from snc_client.sender.failures import Failures
from snc_service.wire import Command, Policy, WireError


class Inbox:
    """The newest policy and the commands that the job has not taken yet.

    The sender thread fills the inbox; the training thread empties it. A policy that is not due by
    ``allowance`` is left for a later answer: the service repeats it until its version is reported.
    """

    def __init__(
        self,
        failures: Failures,
        on_policy: Callable[[Policy], object] | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self._failures = failures
        self._on_policy = on_policy
        self._allowance = allowance or Allowance()
        self._policies: deque[tuple[int, Policy]] = deque(maxlen=1)
        self._commands: deque[Command] = deque()
        self._newest_command = 0  # of those received
        self.policy_version = 0  # the newest received
        self.taken_command = 0  # the newest taken by the job; reported to the service
        self.paused = False

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return the newest policy received and not yet taken."""
        try:
            return self._policies.pop()
        except IndexError:
            return None

    def take_commands(self) -> list[Command]:
        """Return the commands received and not yet taken, oldest first."""
        taken = []
        while self._commands:
            taken.append(self._commands.popleft())
        if taken:
            self.taken_command = taken[-1].id
            self.paused = taken[-1].action == "pause"
        return taken

    def forget_numbers(self, *, of_commands: bool) -> None:
        """Reset the numbers: the service has lost the run, or its policies and commands."""
        self.policy_version = 0
        if of_commands:
            self._newest_command = self.taken_command = 0

    def take_over(self, body: Mapping[str, Any]) -> None:
        """Keep the valid policies and commands of an answer; record the invalid ones."""
        self._take_over_policy(body)
        self._take_over_commands(body)

    def _take_over_policy(self, body: Mapping[str, Any]) -> None:
        version, policy = body.get("policy_version"), body.get("policy")
        # Version 0 is the empty default of the service: the job's own policy stays in force.
        if policy is None or not whole(version) or version in (0, self.policy_version):
            return
        if not self._allowance.due:
            return
        try:
            with self._allowance.spending():
                parsed = Policy.parse(policy)
                if self._on_policy is not None:
                    self._on_policy(parsed)
            self._policies.append((version, parsed))
            self.policy_version = version
        except WireError as error:
            self._failures.record("policy", "the service sent a policy that is none: %s", error)

    def _take_over_commands(self, body: Mapping[str, Any]) -> None:
        try:
            commands = Command.parse_all(body.get("commands") or [])
        except WireError as error:
            self._failures.record("commands", "the service sent commands that are none: %s", error)
            return
        for command in commands:
            if command.id > self._newest_command:
                self._newest_command = command.id
                self._commands.append(command)


def whole(value: object) -> TypeGuard[int]:
    """Return whether a value of an answer is an integer in [0, 2^53)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
