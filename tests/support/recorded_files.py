"""Files as W&B and TensorBoard write them, of values that a test chooses, and real ones."""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

FILES = Path(__file__).resolve().parents[1] / "importing" / "files"
WANDB = FILES / "run-abcd1234.wandb"
EVENTS = FILES / "events.out.tfevents.1796055765.host.7004.0"
BLOCK = 32_768


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def part(number: int, data: bytes | str) -> bytes:
    """Return a field of bytes."""
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def wandb_rows(rows: Iterable[tuple[int, Mapping[str, object]]]) -> list[bytes]:
    """Return history records: names and JSON values at steps."""
    return [
        part(
            2,
            b"".join(part(1, part(2, k) + part(16, json.dumps(v))) for k, v in values.items())
            + part(2, whole(1, step)),
        )
        for step, values in rows
    ]


def wandb_start(run: str = "abc", project: str = "demo") -> bytes:
    return part(17, part(1, run) + part(3, project) + part(8, f"name of {run}"))


def wandb_end(code: int = 0) -> bytes:
    return part(18, whole(1, code))


def write_wandb(path: Path, records: Iterable[bytes]) -> Path:
    """Write a record log, with records that do not fit into their block cut in fragments."""
    out = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for record in records:
        is_first = True
        while True:
            left = BLOCK - len(out) % BLOCK
            if left < 7:
                out += bytes(left)
                left = BLOCK
            piece, record = record[: left - 7], record[left - 7 :]
            kind = (1 if not record else 2) if is_first else (4 if not record else 3)
            crc = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            out += struct.pack("<IHB", crc, len(piece), kind) + piece
            is_first = False
            if not record:
                break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def crc32c(data: bytes) -> int:
    """Return the CRC bit by bit: slow, and as its definition says."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def event_record(data: bytes) -> bytes:
    def masked(crc: int) -> int:
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    head = struct.pack("<Q", len(data))
    return (
        head
        + struct.pack("<I", masked(crc32c(head)))
        + data
        + struct.pack("<I", masked(crc32c(data)))
    )


def event(step: int, **values: float) -> bytes:
    """Return an event of scalars; ``__`` in a name is a slash."""
    summary = b"".join(
        part(1, part(1, k.replace("__", "/")) + varint(2 << 3 | 5) + struct.pack("<f", v))
        for k, v in values.items()
    )
    return whole(2, step) + part(5, summary)


def write_events(path: Path, events: Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(event_record(each) for each in events))
    return path


def mlflow_database(path: Path) -> Path:
    """Write the database that MLflow wrote, with the tables that are read."""
    with closing(sqlite3.connect(path)) as base:
        base.executescript(f"begin; {(FILES / 'mlflow.sql').read_text()} commit;")
    return path


def mlflow_folder(folder: Path, lines: Mapping[str, str], run: str = "f" * 32) -> Path:
    """Write a folder store of one run with these files of metrics."""
    place = folder / "7" / run
    for name, text in lines.items():
        file = place / "metrics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "7" / "meta.yaml").write_text("experiment_id: '7'\nname: demo\n")
    (place / "meta.yaml").write_text(f"run_id: {run}\nrun_name: first\nstatus: 4\n")
    (place / "params").mkdir()
    (place / "params" / "lr").write_text("0.001")
    return place
