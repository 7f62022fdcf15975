"""The spool: an append-only log on local disk that outlives its process, bounded in bytes.

A folder of segments, each a sequence of records (see `records`). The newest note is the log's
state, and is copied to the head of every new segment, so that old ones can be deleted. An invalid
record ends its segment: a torn tail loses the torn records, and none before or after them.

Past its bound a log first spares: it rewrites its oldest segments, each under its name in one move,
with the shorter entries that ``spare`` returns; only then it drops whole segments.

Entries that `append` has written survive the death of the process, kill -9 included. They are
synced to the disk (`fsync`) when a segment is full, with a note that asks for it and at `close`: a
crash of the machine may lose the entries since then.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from snc_client.spool.claim import Claim
from snc_client.spool.records import ENTRY, HEADER, INDEX, NOTE, Record, packed, record_at, records

SEGMENT_BYTES: Final = 8 * 2**20
WORTH: Final = 0.9  # a segment is rewritten if at most this share of it is left

Spare: TypeAlias = Callable[[bytes, int], tuple[bytes, int]]


@dataclass
class Segment:
    """One file: its entries and the position of the reader."""

    path: Path
    first: int  # index of its first entry in the whole log
    num_bytes: int = 0
    entries: int = 0
    weight: int = 0
    read_entries: int = 0
    read_weight: int = 0
    read_offset: int = 0
    spared: bool = False  # nothing more in it can be spared


class Spool:
    """The log in ``folder``, locked for this process; entries of an earlier one are read first.

    Thread-safe. ``spare`` gets a payload and its weight and returns less of both. It is called past
    ``max_bytes``, for the oldest entries first; segments that were read from stay unchanged, as
    their entries may be in a batch being sent. When nothing more can be spared the oldest segment
    is dropped. ``dropped_weight`` counts the weight of the entries lost unread.

    Raises `SpoolBusy`, and `OSError` for errors of the disk: after one from `append` none of its
    entries is in the log, and the next call starts a new segment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        segment_bytes: int = SEGMENT_BYTES,
        spare: Spare | None = None,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._max_bytes = max_bytes
        self._spare = spare
        # At least four segments: dropping one must not empty the log.
        self._segment_bytes = max(min(segment_bytes, max_bytes // 4), 1)
        self._lock = threading.RLock()
        self._claim = Claim(folder / "lock")
        self._segments: deque[Segment] = deque()
        self._file: int | None = None  # descriptor of the last segment, while it can be appended to
        self._reading: tuple[Path, int] | None = None
        self.note = b""
        self.dropped_weight = 0
        for path in folder.glob("[0-9]*.part"):  # of a process that died while it rewrote
            path.unlink()
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
        """Return the index of the oldest entry in the log."""
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
            self._write(segment, [packed(ENTRY, payload, w) for payload, w in entries])
            segment.entries += len(entries)
            segment.weight += sum(weight for _, weight in entries)
            self._keep_bound()

    def set_note(self, note: bytes, *, sync: bool = False) -> None:
        """Replace the log's state; with ``sync`` write it and all before it to the disk."""
        with self._lock:
            self._write(self._writable(), [packed(NOTE, note)])
            self.note = note
            if sync and self._file is not None:
                os.fsync(self._file)

    def next(self) -> tuple[int, bytes] | None:
        """Read the oldest unread entry and its index; None if there is none."""
        with self._lock:
            for segment in self._segments:
                while segment.read_entries < segment.entries:
                    record = self._read(segment)
                    if record is None:  # damaged since it was written: drop the segment's rest
                        self.dropped_weight += segment.weight - segment.read_weight
                        segment.read_entries, segment.read_weight = segment.entries, segment.weight
                        break
                    segment.read_offset = record.end
                    if record.kind == ENTRY:
                        segment.read_entries += 1
                        segment.read_weight += record.weight
                        return segment.first + segment.read_entries - 1, record.payload
            return None

    def forget(self, index: int) -> None:
        """Delete segments whose entries are all before ``index``; the last one stays."""
        with self._lock:
            while len(self._segments) > 1 and self._segments[1].first <= index:
                self._remove(self._segments.popleft())

    def close(self, *, remove: bool = False) -> None:
        """Write all to the disk and unlock; with ``remove`` delete the segments."""
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
        # Never append to an old file: after a crash it may end in a torn record.
        self._file = os.open(segment.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._segments.append(segment)
        head = [packed(HEADER, INDEX.pack(first))]
        self._write(segment, [*head, packed(NOTE, self.note)] if self.note else head)
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
            # Cut the partial write; if even that fails, the checksums show where the log ends.
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
            if not self._spare_oldest():
                segment = self._segments.popleft()
                self.dropped_weight += segment.weight - segment.read_weight
                self._remove(segment)

    def _spare_oldest(self) -> bool:
        """Rewrite the oldest segment that can be shortened; return False if there is none."""
        for segment in list(self._segments)[:-1]:
            if self._spare is None or segment.spared or segment.read_offset:
                continue
            segment.spared = True
            try:
                if self._rewrite(segment, self._spare):
                    return True
            except OSError:  # no room for the rewrite: whole segments are dropped instead
                segment.path.with_suffix(".part").unlink(missing_ok=True)
        return False

    def _rewrite(self, segment: Segment, spare: Spare) -> bool:
        """Shorten the entries of an unread segment; return False if that saves too little."""
        left, entries, weight = [packed(HEADER, INDEX.pack(segment.first))], 0, 0
        with open(segment.path, "rb") as file:
            for record in records(file.fileno(), segment.num_bytes):
                if record.kind == ENTRY:
                    payload, kept = spare(record.payload, record.weight)
                    left.append(packed(ENTRY, payload, kept))
                    entries, weight = entries + 1, weight + kept
                elif record.kind == NOTE:
                    left.append(packed(NOTE, record.payload))
        data = b"".join(left)
        if len(data) > WORTH * segment.num_bytes or entries < segment.entries:
            return False
        _replace(segment.path, data)
        self.dropped_weight += segment.weight - weight
        segment.num_bytes, segment.weight = len(data), weight
        return True

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
        return record_at(self._reading[1], segment.read_offset, segment.num_bytes)

    def _recover(self, path: Path) -> None:
        """Load a segment of an earlier process, up to its first invalid record."""
        segment = Segment(path, self._end())
        file = os.open(path, os.O_RDONLY)
        try:
            for record in records(file, os.fstat(file).st_size):
                segment.num_bytes = record.end
                if record.kind == HEADER:
                    segment.first = max(segment.first, INDEX.unpack(record.payload)[0])
                elif record.kind == NOTE:
                    self.note = record.payload
                else:
                    segment.entries += 1
                    segment.weight += record.weight
        finally:
            os.close(file)
        self._segments.append(segment)


def _replace(path: Path, data: bytes) -> None:
    """Replace the content of a segment: a crash meanwhile leaves the old one or the new one."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        os.chmod(part, 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
