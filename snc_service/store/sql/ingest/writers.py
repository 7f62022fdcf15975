"""Writers: the last stored batch of each client process, so none is stored twice or skipped."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.types import RunFull, SequenceConflict, SequenceGap
from snc_service.wire import Batch

KEPT = 64  # newest batches whose content can be compared with a repeated one
UPSERT = (
    "insert into writer (run_id, writer, last_seq, last_step, attempt, crcs) "
    "values (?, ?, ?, ?, ?, ?) on conflict (run_id, writer) do update set "
    "last_seq = excluded.last_seq, last_step = excluded.last_step, "
    "attempt = excluded.attempt, crcs = excluded.crcs"
)
# After one byte: the low 32 bits of a seq, which tell 64 seqs apart, and a CRC.
_PAIR = struct.Struct("<II")
_OLD_PAIR = struct.Struct("<QQ")  # without the byte, of earlier releases
_FORM = b"\x01"


@dataclass(frozen=True)
class Writer:
    """One client process: its last seq (-1: none), and seq and CRC of its last batches."""

    name: str
    last_seq: int = -1
    last_step: int = -1
    attempt: int | None = None
    crcs: bytes = _FORM  # pairs of uint32, the newest last

    @property
    def is_new(self) -> bool:
        """Return whether the run has not heard of it."""
        return self.attempt is None

    def has_stored(self, batch: Batch, crc: int) -> bool:
        """Return whether the batch is stored; False: it is the next one.

        Raises `SequenceConflict` if its seq is stored with other content, and `SequenceGap` if an
        earlier batch is missing and not declared as dropped.
        """
        if batch.seq <= self.last_seq:
            kept = dict(_PAIR.iter_unpack(self.crcs[1:])).get(batch.seq & 0xFFFFFFFF, crc)
            if kept != crc:
                raise SequenceConflict(
                    f"seq {batch.seq} of writer {batch.writer!r} is stored with other content"
                )
            return True
        # A client that missed acknowledgements may declare stored batches as dropped: no gap.
        if batch.seq - batch.skipped > self.last_seq + 1:
            raise SequenceGap(expected=self.last_seq + 1, got=batch.seq)
        return False

    def after(self, batch: Batch, crc: int, attempt: int) -> Writer:
        """Return the writer after ``batch`` was stored in ``attempt``."""
        pair = _PAIR.pack(batch.seq & 0xFFFFFFFF, crc)
        crcs = _FORM + (self.crcs[1:] + pair)[-KEPT * _PAIR.size :]
        return Writer(self.name, batch.seq, batch.steps[-1], attempt, crcs)

    def row(self, run_id: int) -> Row:
        """Return the parameters of `UPSERT`."""
        return (run_id, self.name, self.last_seq, self.last_step, self.attempt, self.crcs)


def load(connection: Connection, run_id: int, name: str) -> Writer:
    """Return a writer, a new one if the run has none of that name."""
    row = connection.execute(
        "select last_seq, last_step, attempt, crcs from writer where run_id = ? and writer = ?",
        (run_id, name),
    ).fetchone()
    if row is None:
        return Writer(name)
    last_seq, last_step, attempt, crcs = row
    return Writer(name, last_seq, last_step, attempt, _crcs(bytes(crcs)))


def _crcs(stored: bytes) -> bytes:
    """Return stored pairs in the form of this release."""
    if stored[:1] == _FORM and len(stored) % 2:
        return stored
    pairs = _OLD_PAIR.iter_unpack(stored)
    return _FORM + b"".join(_PAIR.pack(seq & 0xFFFFFFFF, crc) for seq, crc in pairs)


def check_room(connection: Connection, run_id: int, limit: int) -> None:
    """Raise `RunFull` if a run has no room for another writer."""
    (count,) = connection.execute(
        "select count(*) from writer where run_id = ?", (run_id,)
    ).fetchone()
    if count >= limit:
        raise RunFull("writers", "writers", limit, field="writer")
