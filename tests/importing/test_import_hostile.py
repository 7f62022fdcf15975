"""Files are hostile until checked: whatever is in them, an import gives values or a sentence."""

import json
import random
import resource
import struct
import zlib

import pytest
from recorded_files import (
    EVENTS,
    WANDB,
    event_record,
    mlflow_database,
    mlflow_folder,
    part,
    varint,
    wandb_end,
    wandb_start,
    whole,
    write_events,
    write_wandb,
)

from snc_service.importing import columns, name_map, protobuf, recording
from snc_service.importing.name_map import mapped
from snc_service.importing.sources import find
from snc_service.wire import WireError

ROUNDS = 150  # of each kind of file


def outcome(path) -> int:
    """Import a path as far as it goes; return how many values came, raise for what is no error."""
    count = 0
    try:
        for source in find(path):
            for found in source.read():
                names = mapped(found)
                for piece in columns.RecordedColumns(found, names).pieces():
                    count += piece.num_values
                found.remarks()
    except (WireError, OSError) as error:
        text = str(error)
    else:
        text = ""
    assert len(text) < 600
    return count


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Flip bits, cut, repeat or overwrite."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        at = dice.randrange(len(changed))
        kind = dice.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at : at + 4] = dice.choice([b"\xff" * 4, bytes(4), dice.randbytes(4)])
        elif kind == 3:
            end = min(len(changed), at + dice.randrange(1, 300))
            changed[at:at] = changed[at:end]
        else:
            del changed[at : at + dice.randrange(1, 50)]
        if not changed:
            return b"x"
    return bytes(changed)


def fixed_wandb(data: bytes) -> bytes:
    """Return a log whose CRCs are right again, so that the mutation reaches the messages."""
    out, at = bytearray(data[:7]), 7
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        crc = zlib.crc32(body, zlib.crc32(bytes([kind])))
        out += struct.pack("<IHB", crc, len(body), kind) + body
        at += 7 + length
    return bytes(out)


def wide_table() -> bytes:
    lines = ["step,loss,sigma/fc1.weight", *(f"{step},{1 / step},{step}" for step in range(1, 40))]
    return "\n".join(lines).encode() + b"\n"


def export() -> bytes:
    lines = [f'"r",0,"sigma","fc1.weight",{step},{step / 8}' for step in range(40)]
    return "\r\n".join(["run,attempt,metric,layer,step,value", *lines]).encode() + b"\r\n"


FILES = {
    "run-a.wandb": WANDB.read_bytes,
    EVENTS.name: EVENTS.read_bytes,
    "wide.csv": wide_table,
    "export.csv": export,
}


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_give_values_or_a_sentence(tmp_path, name):
    dice, data, path = random.Random(name), FILES[name](), tmp_path / name
    path.write_bytes(data)
    most = outcome(path)
    assert most > 30
    counts = []
    for number in range(ROUNDS):
        changed = mutated(data, dice)
        if name.endswith(".wandb") and number % 2:
            changed = fixed_wandb(changed)
        path.write_bytes(changed)
        counts.append(outcome(path))
    assert any(0 < count < most for count in counts)  # the mutations did reach values


def test_mutated_messages_with_right_crcs_give_values_or_a_sentence(tmp_path):
    dice = random.Random(7)
    value = part(1, part(1, "loss") + varint(2 << 3 | 5) + struct.pack("<f", 0.5))
    tensor = part(1, part(1, "v2") + part(8, whole(1, 1) + part(2, b"") + part(4, b"\0\0\0?")))
    data = whole(2, 7) + part(5, value + tensor)
    path = tmp_path / "events.out.tfevents.1.h"
    path.write_bytes(event_record(data))
    assert outcome(path) == 2
    for _ in range(4 * ROUNDS):
        path.write_bytes(event_record(mutated(data, dice)))
        outcome(path)


def test_mutated_databases_give_values_or_a_sentence(tmp_path):
    dice, path = random.Random(3), mlflow_database(tmp_path / "mlflow.db")
    data = path.read_bytes()
    assert outcome(path) == 151
    for _ in range(ROUNDS):
        path.write_bytes(mutated(data, dice))
        outcome(path)


def test_mutated_parquet_gives_values_or_a_sentence(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "wide.parquet"
    table = pa.table({"step": list(range(100)), "loss": [1 / (1 + step) for step in range(100)]})
    parquet.write_table(table, path)
    dice, data = random.Random(3), path.read_bytes()
    assert outcome(path) == 100
    for _ in range(ROUNDS):
        path.write_bytes(mutated(data, dice))
        outcome(path)


def test_a_length_that_is_not_there_allocates_nothing(tmp_path):
    """Each of these says that gigabytes follow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    deep = part(2, part(1, b"\x0a" + varint(2**40)))
    write_wandb(tmp_path / "a" / "run-a.wandb", [deep, wandb_end()])
    long_ = struct.pack("<Q", 2**40)
    path = tmp_path / "b" / "events.out.tfevents.1.h"
    path.parent.mkdir()
    path.write_bytes(long_ + struct.pack("<I", 0) + b"x" * 100)
    for folder in ("a", "b"):
        assert outcome(tmp_path / folder) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_values_of_json_that_break_a_reader_are_left_out(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    texts = (deep, "9" * 5_000, "1e999", "-", "{", '"x', "1_0", "0x10", "\udcff", "NaN")
    items = b"".join(
        part(1, part(2, f"v{at}") + part(16, text.encode("utf-8", "surrogateescape")))
        for at, text in enumerate(texts)
    )
    config = part(5, part(1, part(1, "deep") + part(16, deep[:60_000])))
    records = [wandb_start(), config, part(2, items + part(2, whole(1, 1))), wandb_end()]
    (source,) = find(write_wandb(tmp_path / "run-a.wandb", records))
    (found,) = source.read()
    there = {key.name: list(points.values) for key, points in found.series.items()}
    assert there["v2"] == [float("inf")]
    assert "v0" not in there
    json.dumps(found.config, allow_nan=False)


def test_values_and_names_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MOST_POINTS", 100)
    table = tmp_path / "wide.csv"
    table.write_text("step,loss\n" + "".join(f"{step},1\n" for step in range(101)))
    with pytest.raises(WireError, match=r"wide.csv must hold at most 100 values of a run"):
        list(find(table)[0].read())
    monkeypatch.setattr(recording, "MOST_NAMES", 3)
    table.write_text("step,a,b,c,d\n1,1,1,1,1\n")
    with pytest.raises(WireError, match="at most 3 names"):
        list(find(table)[0].read())
    table.write_text(f"step,{'n' * 2_000}\n1,1\n")
    with pytest.raises(WireError, match="names of at most 1024 letters"):
        list(find(table)[0].read())


def test_a_message_is_bounded_in_its_fields(monkeypatch):
    monkeypatch.setattr(protobuf, "MOST_FIELDS", 10)
    assert len(list(protobuf.fields(whole(1, 1) * 10))) == 10
    with pytest.raises(protobuf.Malformed):
        list(protobuf.fields(whole(1, 1) * 11))
    for broken in (b"\x08", b"\x0a\x05ab", b"\x09abc", b"\x0b", b"\xff" * 11):
        with pytest.raises(protobuf.Malformed):
            list(protobuf.fields(broken))


def test_no_measured_nan_becomes_a_value_that_was_not_measured(tmp_path):
    import numpy as np

    from snc_service.wire.batch import ABSENT_BITS

    payload = np.array([ABSENT_BITS], "<u4").tobytes()
    data = whole(2, 1) + part(5, part(1, part(1, "loss") + varint(2 << 3 | 5) + payload))
    path = write_events(tmp_path / "events.out.tfevents.1.h", [data])
    assert outcome(path) == 1


def test_odd_steps_are_left_out_and_said(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("step,loss\n-1,1\nx,1\n1.5,1\n2,1\n1e300,1\n3\n,,\n2,4\n4,oops\n5,1")
    (found,) = find(table)[0].read()
    (points,) = found.series.values()
    assert [list(part) for part in points.ordered()] == [[2, 5], [4, 1]]
    assert found.remarks() == [
        "t.csv has no line end behind its last row: it may have been cut",
        "left out 6 rows that have no step or miss cells",
        "left out 1 cells that are no numbers: loss",
    ]


def test_what_a_pattern_may_be_is_bounded():
    for text, reason in (
        ("loss", "must be PATTERN=TARGET"),
        ("{layer}{layer}=sigma", "once"),
        ("*" * 9 + "=loss", "8 times"),
        ("a=Big Name", "must have a target"),
    ):
        with pytest.raises(WireError, match=reason):
            name_map.entries([text])


def test_a_folder_of_runs_is_read_although_one_is_broken(tmp_path):
    mlflow_folder(tmp_path / "mlruns", {"loss": "1 0.5 1\n"})
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    sources = find(tmp_path)
    assert [source.form for source in sources] == ["table", "mlflow"]
    with pytest.raises(WireError, match=r"must have a column of steps .* name it with --step"):
        list(sources[0].read())
    assert len(list(sources[1].read())) == 1
