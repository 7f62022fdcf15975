"""Power losses, simulated from what a process really wrote and synced: `strace` records it.

A process ingests and folds, and writes a line to its standard output for each acknowledgement.
Every write, sync and truncation of its files is taken from the trace, in order. At an instant, a
file has what it had when it was last synced, plus a random part of what was written since: whole
writes in any order, some of them torn at a sector. A disk may have that after the power failed.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from store_cases import NOW, judge, new_run
from store_victim import LAYERS, submission

from snc_service.store import open_store, tiles
from snc_service.store.engines import sqlite

SECTOR = 512
CALLS = "pwrite64,write,fsync,fdatasync,ftruncate,unlink"
_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_FD = re.compile(r"^(\d+)<(.*?)>(?:, )?(.*)$", re.S)


@dataclass(frozen=True)
class Written:
    """One change of a file: bytes at an offset, or a new size."""

    file: str
    at: int
    data: bytes | None  # None: cut off there


@dataclass
class Trace:
    """What happened, in order: changes, names of synced files, and acknowledged batches."""

    happened: list[Written | str | int] = field(default_factory=list)

    def acknowledged(self, instant: int) -> int:
        """Return the last batch that was acknowledged before an instant, -1 if none was."""
        return max((each for each in self.happened[:instant] if isinstance(each, int)), default=-1)

    def unsynced_acknowledgements(self) -> list[int]:
        """Return the batches that were acknowledged while something in the log was not synced."""
        dirty, found = False, []
        for each in self.happened:
            if isinstance(each, Written) and each.file.endswith("-wal"):
                dirty = True
            elif isinstance(each, str) and each.endswith("-wal"):
                dirty = False
            elif isinstance(each, int) and dirty:
                found.append(each)
        return found


def recorded(folder: Path, groups: int) -> Trace:
    """Run a victim under strace, with its store in ``folder``; return what it did."""
    log = folder / "trace"
    # Everything in hexadecimal: a trace line is a line, whatever is written.
    command = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", log]
    command += [sys.executable, __file__, f"sqlite:///{folder}/snc.db", str(groups)]
    subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return parsed(log.read_text())


def parsed(text: str) -> Trace:
    """Return what a trace says about the store's files and the standard output."""
    trace = Trace()
    for line in text.splitlines():
        call = _CALL.match(line)
        if call is None or int(call[3]) < 0:
            continue
        name, given = call[1], _FD.match(call[2])
        if given is None:
            continue
        fd, path, rest = given.groups()
        file = os.path.basename(path if "\\x" not in path else unhex(path).decode())
        if name == "write" and fd == "1":
            said = unhex(rest.rsplit(",", 1)[0]).split()
            trace.happened += [int(said[1])] if said and said[0] == b"ack" else []
        elif file not in ("snc.db", "snc.db-wal"):
            continue
        elif name == "pwrite64":
            data, _, at = rest.rsplit(", ", 2)
            trace.happened.append(Written(file, int(at), unhex(data)[: int(call[3])]))
        elif name in ("fsync", "fdatasync"):
            trace.happened.append(file)
        elif name == "ftruncate":
            trace.happened.append(Written(file, int(rest), None))
        else:
            raise AssertionError(line[:200])
    return trace


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.strip().strip('"').replace("\\x", ""))


def fail(trace: Trace, instant: int, folder: Path, chance: random.Random) -> None:
    """Leave in ``folder`` what a disk may have if the power fails at an instant."""
    whole: dict[str, bytearray] = {}
    loose: dict[str, list[Written]] = {}
    for each in trace.happened[:instant]:
        if isinstance(each, Written):
            loose.setdefault(each.file, []).append(each)
        elif isinstance(each, str):
            for change in loose.pop(each, []):
                apply(whole.setdefault(each, bytearray()), change)
    for file, changes in loose.items():
        some = [change for change in changes if chance.random() < 0.6]
        chance.shuffle(some)
        for change in some:
            apply(whole.setdefault(file, bytearray()), torn(change, chance))
    for file, data in whole.items():
        (folder / file).write_bytes(data)


def torn(change: Written, chance: random.Random) -> Written:
    """Return a change, or one time in three only some of its first or last sectors."""
    if change.data is None or chance.random() < 2 / 3:
        return change
    cut = chance.randrange(0, len(change.data) + 1, SECTOR)
    if chance.random() < 0.5:
        return Written(change.file, change.at, change.data[:cut])
    return Written(change.file, change.at + cut, change.data[cut:])


def apply(content: bytearray, change: Written) -> None:
    if change.data is None:
        del content[change.at :]
        content.extend(bytes(max(0, change.at - len(content))))
        return
    end = change.at + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.at : end] = change.data


def victim(url: str, groups: int) -> None:
    """Ingest and fold in turns, in one thread, and say what was acknowledged."""
    tiles.TILE_STEPS, tiles.FANOUT = 64, 8
    sqlite.CHECKPOINT_BYTES = 2**16  # so that the log is written back, and begun anew, often
    with closing(open_store(url)) as store:
        judge(store)
        new_run(store)
        store.batches.put_layer_table("r1", LAYERS)
        seq = 0
        for group in range(groups):
            some = [submission("one", seq + i) for i in range(1 + group % 3)]
            outcomes = store.batches.ingest(some)
            assert all(outcome.error is None for outcome in outcomes)
            seq += len(some)
            os.write(1, f"ack {seq - 1}\n".encode())
            if group % 8 == 7:
                store.fold(0.05, now=NOW + 3_600)


if __name__ == "__main__":
    victim(sys.argv[1], int(sys.argv[2]))
