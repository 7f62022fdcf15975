"""Reporter: sends the rows of a job to the service, and receives policies and commands."""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from snc_client.callback.model.distributed import joined, may_join, ranks, several_ranks
from snc_client.callback.service.commands import Commands, OnCommand
from snc_client.callback.service.rank_relay import News, RankRelay
from snc_client.layer_row import Floats
from snc_client.layers import Layer
from snc_client.sender import Sender
from snc_client.sender.backoff import EndState
from snc_service.wire import Command, LayerSpec, LayerTable, Policy

log = logging.getLogger("snc")

UNDECIDED_ROWS = 64  # kept while a rank does not know yet whether it reports
RANK_0_SECONDS = 5.0  # that closing waits for rank 0, where that rank has no callback at all


class Reporter:
    """Sends rows; receives commands and policies. Without a url nothing leaves the process.

    Rank 0 reports. Another rank reports if its layers are not among those of rank 0, such as a
    pipeline stage: into the same run, without the scalars. Which rank this is may turn out late: a
    process that another one has started creates its run with its first row.

    What is not given is taken from SNC_URL, SNC_TOKEN, SNC_RUN and SNC_PROJECT; ``keywords`` are
    those of `Sender`. Raises ValueError for what cannot be sent.
    """

    def __init__(
        self,
        url: str | None,
        *,
        token: str | None,
        run: str | None,
        project: str | None,
        layers: Sequence[Layer],
        gains: Mapping[str, Tensor],
        metrics: tuple[str, ...],
        on_command: OnCommand | None,
        **keywords: Any,
    ) -> None:
        self._commands = Commands(on_command)
        self._policy = keywords.get("policy")  # in force: the job's own, then what was taken
        self._relay = RankRelay()
        self._news = News()
        self._reports: bool | None = None
        self._announced = False
        self._others: frozenset[str] = frozenset()  # layers that rank 0 reports
        self._end: EndState | None = None
        self._resumes = False
        self._early: deque[tuple[int, Floats, dict[str, float], float]] = deque(
            maxlen=UNDECIDED_ROWS
        )
        self.url = url or os.environ.get("SNC_URL")
        self._table = _table(layers, gains)
        self._make: Callable[..., Sender] = partial(
            Sender,
            self.url or "",
            token=token or os.environ.get("SNC_TOKEN"),
            project=project or os.environ.get("SNC_PROJECT"),
            metrics=metrics,
            start=False,
            **keywords,
        )
        self._sender: Sender | None = None
        if self.url:
            self._sender = self._make(table=self._table, run=run or os.environ.get("SNC_RUN"))
        if not may_join():
            self._decide()

    @property
    def run(self) -> str | None:
        """Return the run's id on the service, None where nothing is sent."""
        silent = self._sender is None or (ranks()[0] and not self._reports)
        return None if silent or self._sender is None else self._sender.run

    @property
    def attempt(self) -> int:
        """Return the attempt of the run that rows are sent to, 0 while it is unknown."""
        return self._sender.attempt if self._sender else 0

    @property
    def sent_values(self) -> int:
        """Return how many values the service has acknowledged."""
        return self._sender.sent_values if self._sender else 0

    def dropped_values(self, lost_rows: int, num_metrics: int) -> int:
        """Return how many values are lost: in so many rows that were never sent, and on the way."""
        lost = lost_rows * num_metrics * len(self._table.layers)
        return lost + (self._sender.dropped_values if self._sender else 0)

    @property
    def delivered(self) -> bool:
        """Return whether an end that was requested is complete."""
        return self._sender is None or self._sender.delivered

    @property
    def destination(self) -> str:
        """Return where rows go, in words."""
        if self._sender is None:
            return "nothing is sent: no url was given"
        if ranks()[0] != 0:
            return f"rank 0 reports, this is rank {ranks()[0]}: it sends layers that rank 0 lacks"
        return f"sent as run {self._sender.run}"

    def put(self, step: int, columns: Floats, scalars: Mapping[str, float], time: float) -> None:
        """Send a row, float32 [M, L]; never waits."""
        if self._sender is None or self._end is not None:
            return
        if self._reports is None:
            self._decide()
        if self._resumes:
            self._resumes = False
            self._sender.start()
        if self._reports:
            columns = columns[:, self._places()]
            self._sender.put(step, columns, {} if ranks()[0] else dict(scalars), time)
        elif self._reports is None:
            self._early.append((step, columns.copy(), dict(scalars), time))

    def relist(self, layers: Sequence[Layer], gains: Mapping[str, Tensor]) -> None:
        """Report these layers and gains from now on, if they are others than before."""
        table = _table(layers, gains)
        if table == self._table or self._sender is None:
            return
        before, self._table = self._table, table
        try:
            if self._reports:
                self._sender = self._successor()
                self._sender.start()
            else:
                self._early.clear()
                self._sender = self._make(table=table, run=self._sender.run)
        except ValueError as error:
            self._table = before
            log.warning("snc: new layers are not reported: %s", error)

    def at_step(self) -> None:
        """Take in what the service has sent; among several ranks, at the same step on all."""
        if not several_ranks():
            return
        if joined() and not ranks()[0] and not self._announced:
            self._announced = True
            self._relay.announce(self.run, self._table.names)
        news = self._relay.at_step(self._received)
        self._commands.add(news.commands)
        self._news = News(news.policy or self._news.policy)

    def obey(self) -> None:
        """Give the commands that have come to the user's function."""
        self._commands.obey(self._own_news())

    def take_commands(self) -> list[Command]:
        """Return the commands that wait, oldest first."""
        return self._commands.take(self._own_news())

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return a policy that has come, with its version, once."""
        taken, sender = self._news.policy, self._own_news()
        if taken is not None:  # what all ranks have got, at this step
            self._news = News()
        elif sender is not None:
            taken = sender.take_policy()
        # The service sends the job's own, which is in force already.
        if taken is None or taken[1] == self._policy:
            return None
        self._policy = taken[1]
        return taken

    def writes_to(self, other: Reporter) -> bool:
        """Return whether it writes to the run of ``other``."""
        return self._end is None and self.run is not None and self._address == other._address

    def fail(self) -> None:
        """Deliver what waits and say that the run has failed. The next row resumes it."""
        if self._sender is None or self._end is not None or not self._reports:
            return
        self._sender.request_end("continued" if ranks()[0] else "failed")
        self._sender = self._successor()
        self._resumes = True

    def request_end(self, state: EndState, timeout: float = math.inf) -> None:
        """Begin to deliver what waits and to finish the run; return at once."""
        if self._sender is None or self._end is not None:
            return
        self._decide()
        # A part of a run does not end it.
        self._end = "continued" if ranks()[0] else state
        self._sender.request_end(self._end, timeout)

    def hurry(self, state: EndState, timeout: float) -> None:
        """Do as `request_end` does, also where it was requested without a limit of time."""
        self.request_end(state, timeout)
        if self._sender is not None and self._end is not None:
            self._sender.request_end(self._end, timeout)

    def close(self, timeout: float, state: EndState) -> None:
        """Deliver what waits and finish the run, in ``timeout`` seconds."""
        self._await_rank_0(min(timeout, RANK_0_SECONDS))
        self.request_end(state, timeout)
        if self._sender is not None and self._end is not None:
            self._sender.close(timeout, self._end)

    @property
    def _address(self) -> tuple[str | None, str | None]:
        return self.url, self.run

    def _successor(self) -> Sender:
        """Return a sender for the present layers, to be started when this one has delivered."""
        assert self._sender is not None, "there is a url"
        return self._make(
            table=self._own(),
            run=self._sender.run,
            policy=None,
            after=self._sender,
            part=ranks()[0] > 0,
        )

    def _own_news(self) -> Sender | None:
        """Return who has news for this process alone; among several ranks nobody."""
        return None if self._sender is None or several_ranks() else self._sender

    def _received(self) -> News:
        if self._sender is None:
            return News()
        return News(self._sender.take_policy(), self._sender.take_commands())

    def _decide(self) -> None:
        """Find out whether this rank reports, and begin if it does."""
        if self._reports is not None or self._sender is None:
            return
        if ranks()[0] == 0:
            self._reports = True
        elif joined() and (part := self._relay.part(self._table.names)) is not None:
            self._reports, self._others = part.reports, part.others
            if part.reports:
                self._sender = self._make(table=self._own(), run=part.run, part=True)
        if not self._reports:
            if self._reports is False:
                self._early.clear()
            return
        self._sender.start()
        for row in self._early:
            self.put(*row)
        self._early.clear()

    def _await_rank_0(self, seconds: float) -> None:
        """Wait until rank 0 has announced its layers: it may be slower than a short job here."""
        deadline = time.monotonic() + seconds
        while self._sender is not None and self._reports is None and joined():
            self._decide()
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def _own(self) -> LayerTable:
        """Return the layers that this rank reports: all of rank 0, of a part those it lacks."""
        if not self._others:
            return self._table
        return LayerTable(tuple(x for x in self._table.layers if x.name not in self._others))

    def _places(self) -> Sequence[int] | slice:
        """Return the columns of these layers in a row."""
        if not self._others:
            return slice(len(self._table.layers))
        return [i for i, x in enumerate(self._table.layers) if x.name not in self._others]


def weakly(function: Callable[[Policy], object]) -> Callable[[Policy], None]:
    """Return a call of a bound method that does not keep its object, for threads to hold."""
    found = weakref.WeakMethod(function)

    def call(policy: Policy) -> None:
        if (alive := found()) is not None:
            alive(policy)

    return call


def _table(layers: Sequence[Layer], gains: Mapping[str, Tensor]) -> LayerTable:
    named = [LayerSpec(x.name, x.kind, x.shape) for x in layers]
    return LayerTable((*named, *(LayerSpec(n, "gain", tuple(g.shape)) for n, g in gains.items())))
