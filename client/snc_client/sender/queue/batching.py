"""Packer: packs rows into numbered batches, and places each batch in its attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from snc_client.layer_row import Floats, LayerRow
from snc_service.wire import ABSENT, MAX_COLUMNS, METRIC_NAME, Batch, encode


@dataclass
class Frame:
    """A batch being sent: every try sends the same bytes under the same sequence number."""

    batch: Batch
    data: bytes
    num_values: int  # from the job, less those that a full spool gave up (ABSENT in the batch)
    tries: int = 0

    def redeclared(self, expected: int) -> Frame:
        """Return the batch for a service that expects ``expected``: those in between are lost."""
        batch = replace(self.batch, skipped=self.batch.seq - expected)
        return Frame(batch, encode(batch), self.num_values, self.tries)


class Packer:
    """Number batches and place them in attempts: steps that go back start the next attempt."""

    def __init__(self, writer: str, layers: str, metrics: tuple[str, ...]) -> None:
        self._writer = writer
        self._layers = layers
        self._metrics = metrics
        self._seq = 0
        self._attempt: int | None = None
        self._last_step = -1

    @property
    def attempt(self) -> int:
        """Return the attempt of the newest batch; 0 before it is known."""
        return self._attempt or 0

    def resume(self, attempt: int, last_step: int | None) -> None:
        """Continue the run's attempt and last step; only the first answer of the service counts."""
        if self._attempt is None:
            self._attempt = attempt
            self._last_step = -1 if last_step is None else last_step + 1

    def go_on(self, seq: int, attempt: int | None, last_step: int) -> None:
        """Continue the numbering of an earlier process: ``seq`` comes next."""
        self._seq, self._attempt, self._last_step = seq, attempt, last_step

    def pack(self, rows: Sequence[LayerRow], *, skipped: int, dropped: int) -> Frame:
        """Return the next batch of 1 to `MAX_STEPS` rows whose steps increase strictly.

        A scalar that a row lacks is ABSENT there. Cost: two copies of the values.
        """
        scalars = _scalar_names(rows, MAX_COLUMNS - len(self._metrics))
        batch = Batch(
            writer=self._writer,
            seq=self._seq,
            layers=self._layers,
            steps=tuple(row.step for row in rows),
            metrics=self._metrics,
            values=np.stack([row.values for row in rows], axis=1),
            scalars=scalars,
            scalar_values=_scalar_values(rows, scalars),
            times=tuple(row.time for row in rows),
            skipped=skipped,
            dropped=dropped,
            attempt=self._place(rows[0].step, rows[-1].step),
        )
        self._seq += 1
        return Frame(batch, encode(batch), batch.num_values - sum(row.spared for row in rows))

    def _place(self, first: int, last: int) -> int:
        assert self._attempt is not None, "a run is created before its first batch is packed"
        # The same step measured twice is not a rewind: the later batch wins in the store.
        if first < self._last_step:
            self._attempt += 1
        self._last_step = last
        return self._attempt


def _scalar_names(rows: Sequence[LayerRow], room: int) -> tuple[str, ...]:
    """Return the names the wire can carry, in order of appearance, as many as there is room for."""
    names = dict.fromkeys(name for row in rows for name in row.scalars)
    return tuple(name for name in names if METRIC_NAME.fullmatch(name))[:room]


def _scalar_values(rows: Sequence[LayerRow], scalars: tuple[str, ...]) -> Floats:
    """Return [K, S]; values beyond float32 are infinite, as they would be on the device."""
    values = np.full((len(scalars), len(rows)), ABSENT, np.float32)
    with np.errstate(over="ignore"):
        for s, row in enumerate(rows):
            for k, name in enumerate(scalars):
                if name in row.scalars:
                    values[k, s] = row.scalars[name]
    return values
