"""The spool: an append-only log on local disk that outlives its process, bounded in bytes.

A folder of segments, each a run of records::

    u32  length of the payload      u32  CRC-32 of kind, weight and payload
    u8   kind                       u32  weight (what the entry counts for when it is dropped)
    payload

Kinds: H opens a segment (index of its first entry), E is an entry, N a note: the newest note is the
log's state, and is copied to the head of every new segment, so that old ones can go. A record that
does not check ends its segment: a torn tail costs what was torn, nothing before or after it.

What `append` has written survives the death of the process, kill -9 included. It reaches the disk
itself (`fsync`) when a segment is full and at `close`, so the death of the machine may cost the
last segment.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import weakref
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

SEGMENT_BYTES: Final = 8 * 2**20

_HEAD = struct.Struct("<IIBI")
_INDEX = struct.Struct("<Q")
_HEADER, _ENTRY, _NOTE = b"HEN"


class SpoolBusy(Exception):
    """Another process (or another part of this one) uses the folder."""


class Record(NamedTuple):
    """One checked record; ``end`` is the offset behind it."""

    kind: int
    weight: int
    payload: bytes
    end: int


@dataclass
class Segment:
    """One file: its entries, and how far they are read."""

    path: Path
    first: int  # index of its first entry in the whole log
    num_bytes: int = 0
    entries: int = 0
    weight: int = 0
    read_entries: int = 0
    read_weight: int = 0
    read_offset: int = 0


class Spool:
    """The log in ``folder``, locked for this process; what an earlier one left is read first.

    Thread-safe. Past ``max_bytes`` the oldest segment goes, and the weight of its unread entries is
    counted in ``dropped_weight``. Raises `SpoolBusy`, and `OSError` as the disk does: after one
    from `append` none of its entries is in the log, and the next call starts a new segment.
    """

    def __init__(self, folder: Path, *, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._max_bytes = max_bytes
        # At least four segments: dropping one must not empty the log.
        self._segment_bytes = max(min(segment_bytes, max_bytes // 4), 1)
        self._lock = threading.RLock()
        self._claim = _Claim(folder / "lock")
        self._segments: deque[Segment] = deque()
        self._file: int | None = None  # descriptor of the last segment, while it can be appended to
        self._reading: tuple[Path, int] | None = None
        self.note = b""
        self.dropped_weight = 0
        for path in sorted(folder.glob("*.log")):
            self._recover(path)

    def __len__(self) -> int:
        """Return the number of unread entries."""
        with self._lock:
            return sum(segment.entries - segment.read_entries for segment in self._segments)

    @property
    def unread_weight(self) -> int:
        """Return the weight of the unread entries."""
        with self._lock:
            return sum(segment.weight - segment.read_weight for segment in self._segments)

    @property
    def num_bytes(self) -> int:
        """Return the bytes on disk."""
        with self._lock:
            return sum(segment.num_bytes for segment in self._segments)

    @property
    def first(self) -> int:
        """Return the index of the oldest entry that is still there."""
        with self._lock:
            return self._segments[0].first if self._segments else 0

    @property
    def position(self) -> int:
        """Return the index of the next entry that `next` returns."""
        with self._lock:
            for segment in self._segments:
                if segment.read_entries < segment.entries:
                    return segment.first + segment.read_entries
            return self._end()

    def append(self, entries: Sequence[tuple[bytes, int]]) -> None:
        """Append entries with their weights: one write, in the log when this returns."""
        with self._lock:
            segment = self._writable()
            self._write(segment, [_packed(_ENTRY, payload, w) for payload, w in entries])
            segment.entries += len(entries)
            segment.weight += sum(weight for _, weight in entries)
            self._keep_bound()

    def set_note(self, note: bytes) -> None:
        """Replace the log's state."""
        with self._lock:
            self._write(self._writable(), [_packed(_NOTE, note)])
            self.note = note

    def next(self) -> tuple[int, bytes] | None:
        """Read the oldest unread entry and its index; None if there is none."""
        with self._lock:
            for segment in self._segments:
                while segment.read_entries < segment.entries:
                    record = self._read(segment)
                    if record is None:  # the disk lost what it had: give the segment's rest up
                        self.dropped_weight += segment.weight - segment.read_weight
                        segment.read_entries, segment.read_weight = segment.entries, segment.weight
                        break
                    segment.read_offset = record.end
                    if record.kind == _ENTRY:
                        segment.read_entries += 1
                        segment.read_weight += record.weight
                        return segment.first + segment.read_entries - 1, record.payload
            return None

    def forget(self, index: int) -> None:
        """Let go of segments whose entries are all before ``index``; the last one stays."""
        with self._lock:
            while len(self._segments) > 1 and self._segments[1].first <= index:
                self._remove(self._segments.popleft())

    def close(self, *, remove: bool = False) -> None:
        """Reach the disk and unlock; with ``remove`` delete the folder."""
        with self._lock:
            self._finish_segment()
            if self._reading is not None:
                os.close(self._reading[1])
                self._reading = None
            if remove:
                for segment in self._segments:
                    segment.path.unlink(missing_ok=True)
                self._segments.clear()
            self._claim.release()

    # Writing
    def _end(self) -> int:
        return self._segments[-1].first + self._segments[-1].entries if self._segments else 0

    def _writable(self) -> Segment:
        if self._file is not None and self._segments[-1].num_bytes < self._segment_bytes:
            return self._segments[-1]
        self._finish_segment()
        first = self._end()
        number = int(self._segments[-1].path.stem) + 1 if self._segments else 0
        segment = Segment(self.folder / f"{number:012d}.log", first)
        # Never onto an old file: what a dead process left may end in a torn record.
        self._file = os.open(segment.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._segments.append(segment)
        head = [_packed(_HEADER, _INDEX.pack(first))]
        self._write(segment, [*head, _packed(_NOTE, self.note)] if self.note else head)
        return segment

    def _write(self, segment: Segment, records: Sequence[bytes]) -> None:
        assert self._file is not None, "only the last segment is written to"
        data = memoryview(b"".join(records))
        start = segment.num_bytes
        try:
            while data:
                written = os.write(self._file, data)
                segment.num_bytes += written
                data = data[written:]
        except OSError:
            # Cut what was half written; if even that fails, the checksums say where it ends.
            segment.num_bytes = start
            file, self._file = self._file, None
            try:
                os.ftruncate(file, start)
            finally:
                os.close(file)
            raise

    def _finish_segment(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def _keep_bound(self) -> None:
        while self.num_bytes > self._max_bytes and len(self._segments) > 1:
            segment = self._segments.popleft()
            self.dropped_weight += segment.weight - segment.read_weight
            self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        if self._reading is not None and self._reading[0] == segment.path:
            os.close(self._reading[1])
            self._reading = None
        segment.path.unlink(missing_ok=True)

    # Reading
    def _read(self, segment: Segment) -> Record | None:
        if self._reading is None or self._reading[0] != segment.path:
            if self._reading is not None:
                os.close(self._reading[1])
                self._reading = None
            try:
                self._reading = (segment.path, os.open(segment.path, os.O_RDONLY))
            except OSError:
                return None
        return _record(self._reading[1], segment.read_offset, segment.num_bytes)

    def _recover(self, path: Path) -> None:
        """Take over a segment of an earlier process, up to its first record that does not check."""
        segment = Segment(path, self._end())
        file = os.open(path, os.O_RDONLY)
        try:
            for record in _records(file, os.fstat(file).st_size):
                segment.num_bytes = record.end
                if record.kind == _HEADER:
                    segment.first = max(segment.first, _INDEX.unpack(record.payload)[0])
                elif record.kind == _NOTE:
                    self.note = record.payload
                else:
                    segment.entries += 1
                    segment.weight += record.weight
        finally:
            os.close(file)
        self._segments.append(segment)


class _Claim:
    """An exclusive lock on a folder, gone with the process that holds it."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise SpoolBusy(f"{path.parent} is in use") from None
        # A forked worker shares the lock; it must not keep it beyond its parent's death.
        ref = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_claim(ref()))

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _close_claim(claim: _Claim | None) -> None:
    if claim is not None:
        claim.release()


def _packed(kind: int, payload: bytes, weight: int = 0) -> bytes:
    return _HEAD.pack(len(payload), _crc(kind, weight, payload), kind, weight) + payload


def _crc(kind: int, weight: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<BI", kind, weight)))


def _record(file: int, offset: int, end: int) -> Record | None:
    """Return the record at ``offset``; None if none checks there within ``end`` bytes."""
    head = os.pread(file, _HEAD.size, offset)
    if len(head) < _HEAD.size:
        return None
    length, crc, kind, weight = _HEAD.unpack(head)
    behind = offset + _HEAD.size + length
    if behind > end or kind not in b"HEN":
        return None
    payload = os.pread(file, length, offset + _HEAD.size)
    if len(payload) < length or _crc(kind, weight, payload) != crc:
        return None
    if kind == _HEADER and length != _INDEX.size:
        return None
    return Record(kind, weight, payload, behind)


def _records(file: int, end: int) -> Iterator[Record]:
    offset = 0
    while (record := _record(file, offset, end)) is not None:
        yield record
        offset = record.end
