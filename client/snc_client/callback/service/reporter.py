"""What a job has of the service: a sender on rank 0 where a url is known, or nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from snc_client.callback.model.distributed import ranks
from snc_client.callback.service.commands import Commands, OnCommand
from snc_client.layer_row import Floats
from snc_client.layers import Layer
from snc_client.sender import Sender
from snc_service.wire import Command, LayerSpec, LayerTable, Policy

log = logging.getLogger("snc")


class Reporter:
    """Rows out; commands and policies in. Without a url nothing leaves the process.

    What is not given is taken from SNC_URL, SNC_TOKEN, SNC_RUN and SNC_PROJECT; ``keywords`` are
    those of `Sender`. The service takes rows of the ``layers`` that are known now: later ones have
    no column.
    """

    def __init__(
        self,
        url: str | None,
        *,
        token: str | None,
        run: str | None,
        project: str | None,
        layers: Sequence[Layer],
        metrics: tuple[str, ...],
        on_command: OnCommand | None,
        **keywords: Any,
    ) -> None:
        self._commands = Commands(on_command)
        self._own_policy = keywords.get("policy")
        self._num_layers = len(layers)
        self._rank, self._num_ranks = ranks()
        self._sender: Sender | None = None
        url = url or os.environ.get("SNC_URL")
        if url and self._rank == 0:
            specs = tuple(LayerSpec(x.name, x.kind, x.shape) for x in layers)
            self._sender = Sender(
                url,
                token=token or os.environ.get("SNC_TOKEN"),
                run=run or os.environ.get("SNC_RUN"),
                project=project or os.environ.get("SNC_PROJECT"),
                table=LayerTable(specs),
                metrics=metrics,
                **keywords,
            )

    @property
    def run(self) -> str | None:
        """Return the run's id on the service, None without a service."""
        return self._sender.run if self._sender else None

    @property
    def sent_values(self) -> int:
        """Return how many values the service has acknowledged."""
        return self._sender.sent_values if self._sender else 0

    def dropped_values(self, lost_rows: int, num_metrics: int) -> int:
        """Return how many values are lost: in so many rows that were never sent, and on the way."""
        lost = lost_rows * num_metrics * self._num_layers
        return lost + (self._sender.dropped_values if self._sender else 0)

    @property
    def destination(self) -> str:
        """Return where rows go, in words."""
        if self._rank != 0:
            return f"nothing is sent: rank 0 reports, this is rank {self._rank}"
        if self._sender is None:
            return "nothing is sent: no url was given"
        return f"sent as run {self._sender.run}"

    def put(self, step: int, columns: Floats, scalars: Mapping[str, float], time: float) -> None:
        """Send a row, float32 [M, L]; never waits."""
        if self._sender is not None:
            self._sender.put(step, columns[:, : self._num_layers], dict(scalars), time)

    def obey(self) -> None:
        """Give the commands that have come to the user's function."""
        self._commands.obey(self._sender)

    def take_commands(self) -> list[Command]:
        """Return the commands that wait, oldest first."""
        return self._commands.take(self._sender)

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return a policy that has come, with its version, once.

        None among several ranks: the others have no sender, and one rank alone would scale its
        replica away from theirs.
        """
        taken = self._sender.take_policy() if self._sender else None
        if taken is not None and taken[1] == self._own_policy:
            return None  # the job's own, which every rank obeys already
        if taken is not None and self._num_ranks > 1:
            log.warning(
                "snc: policy version %d is not applied: the job has several ranks", taken[0]
            )
            return None
        return taken

    def close(self, timeout: float, state: Literal["finished", "failed"]) -> None:
        """Deliver what waits and finish the run, in ``timeout`` seconds."""
        if self._sender is not None:
            self._sender.close(timeout, state)
