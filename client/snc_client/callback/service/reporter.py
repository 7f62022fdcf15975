"""Reporter: the job's connection to the service, a sender on rank 0 if there is a url."""

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
    """Sends rows; receives commands and policies. Without a url nothing leaves the process.

    Arguments that are None default to SNC_URL, SNC_TOKEN, SNC_RUN and SNC_PROJECT; ``keywords`` are
    those of `Sender`. The rows that it sends have a column for each of ``layers``; layers added
    later have none.
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
        """Return the number of lost values: in ``lost_rows`` unsent rows, and in the sender."""
        lost = lost_rows * num_metrics * self._num_layers
        return lost + (self._sender.dropped_values if self._sender else 0)

    @property
    def destination(self) -> str:
        """Return the destination of the rows, as text."""
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
        """Pass the waiting commands to the user's function."""
        self._commands.obey(self._sender)

    def take_commands(self) -> list[Command]:
        """Return and remove the waiting commands, oldest first."""
        return self._commands.take(self._sender)

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return a new policy of the service and its version, once.

        None in a job of several ranks: only rank 0 has a sender, and it would rescale its replica
        alone.
        """
        taken = self._sender.take_policy() if self._sender else None
        if taken is not None and taken[1] == self._own_policy:
            return None  # the job's own, which every rank applies already
        if taken is not None and self._num_ranks > 1:
            log.warning(
                "snc: policy version %d is not applied: the job has several ranks", taken[0]
            )
            return None
        return taken

    def close(self, timeout: float, state: Literal["finished", "failed"]) -> None:
        """Deliver the waiting rows and finish the run, within ``timeout`` seconds."""
        if self._sender is not None:
            self._sender.close(timeout, state)
