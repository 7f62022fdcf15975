"""Sends a planned run to a service, so that what is sent again is stored once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from snc_service.cli.commands.imports.plan import MARK, ImportPlan
from snc_service.cli.failure import Failure, RefusedByService
from snc_service.cli.service import ServiceClient
from snc_service.importing.columns import ColumnPiece
from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, Batch, LayerTable, encode

State: TypeAlias = Literal["new", "continued", "there", "kept"]
MOST_TRIES: Final = 20
LONGEST_WAIT: Final = 30  # seconds between two tries
CLOSED: Final = ("finished", "failed")
NOT_FOUND: Final = 404
LATER: Final = (429, 503)


@dataclass(frozen=True)
class Delivered:
    """What became of one run.

    ``new``: it did not exist, or its import was interrupted. ``continued``: later steps were added.
    ``there``: the same was imported before. ``kept``: other values were, and there are no later
    steps; nothing is replaced.
    """

    state: State
    sent_values: int = 0


def deliver(
    service: ServiceClient, planned: ImportPlan, told: Callable[[int], object]
) -> Delivered:
    """Create the run, send what it does not have, close it. ``told`` gets numbers of values sent.

    Raises `Failure`, also for a run of this id that no import has made.
    """
    known = _known(service, planned)
    first, writer = -1, f"import-{planned.digest}"
    state: State = "new"
    if known is not None:
        is_same = known["config"][MARK].get("digest") == planned.digest
        if is_same and known["state"] in CLOSED:
            return Delivered("there")
        if not is_same:
            state, first = "continued", -1 if known["last_step"] is None else known["last_step"]
            if len(planned.columns.attempts) > 1:
                raise Failure(
                    f"{planned.run} was imported before from other content, and a run of several "
                    f"attempts is not continued: snc runs delete {planned.run}, then import it"
                )
            if (planned.columns.last_step or 0) <= first:
                return Delivered("kept")
            writer += f"-{first + 1}"
    service.post("runs", body={"run": planned.run, **planned.body})
    sent = _send_all(service, planned, writer, first, told)
    service.post("runs", planned.run, "finish", body={"state": planned.end})
    return Delivered(state, sent)


def _known(service: ServiceClient, planned: ImportPlan) -> dict[str, Any] | None:
    """Return the run as the service has it, None if it has none of this id."""
    try:
        known = service.get("runs", planned.run)
    except RefusedByService as refusal:
        if refusal.status == NOT_FOUND:
            return None
        raise
    mark = known["config"].get(MARK)
    if not isinstance(mark, dict):
        raise Failure(f"{planned.run} must be free or made by an import, got a run of a job")
    return known


def _send_all(
    service: ServiceClient,
    planned: ImportPlan,
    writer: str,
    after: int,
    told: Callable[[int], object],
) -> int:
    table = LayerTable.of_names(planned.columns.layers)
    path = ("runs", planned.run)
    _sent(service, "PUT", *path, "layer-tables", table.hash,
          content=table.body, media_type=JSON_MEDIA_TYPE)  # fmt: skip
    sent = 0
    for seq, piece in enumerate(planned.columns.pieces(after=after)):
        body = encode(_batch(piece, writer, seq, table))
        _sent(service, "POST", *path, "batches", content=body, media_type=MEDIA_TYPE)
        sent += piece.num_values
        told(piece.num_values)
    return sent


def _batch(piece: ColumnPiece, writer: str, seq: int, table: LayerTable) -> Batch:
    # The attempt is named, so that further columns of the same steps are no steps that go back.
    num = len(piece.steps)
    return Batch(
        writer,
        seq,
        table.hash,
        piece.steps,
        tuple(piece.metrics),
        np.stack(list(piece.metrics.values()))
        if piece.metrics
        else np.empty((0, num, 0), np.float32),
        tuple(piece.scalars),
        np.stack(list(piece.scalars.values())) if piece.scalars else np.empty((0, num), np.float32),
        attempt=piece.attempt,
    )


def _sent(service: ServiceClient, method: str, *path: str, content: bytes, media_type: str) -> None:
    """Send one body; wait as long as a busy service asks to."""
    for number in range(1, MOST_TRIES + 1):
        try:
            service.send(method, *path, content=content, media_type=media_type)
            return
        except RefusedByService as refusal:
            if refusal.status not in LATER or number == MOST_TRIES:
                raise
            time.sleep(min(refusal.wait_seconds or 1, LONGEST_WAIT))
