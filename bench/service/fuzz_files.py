"""Hostile files of weights for `bench/service/fuzz.py`: each is audited in a process of its own.

The process is forked from this one, where torch is imported already. Its processor time is limited:
a file that takes longer ends it by SIGXCPU, and the fuzzer with it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from weight_files import header_and_data, safetensors_bytes, write_index, write_safetensors

from snc_client.audit import main

FILE_SECONDS = 60  # of processor time, for a file of at most a few MB
LISTS = 3_000_000


def audit_files(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """Audit ``count`` files, the built ones first; no traceback, no signal, no long work."""
    told: Counter[str] = Counter()
    slowest, longest = "", 0.0
    for number, (name, path) in enumerate(_files(rng, folder)):
        if number == count:
            break
        status, seconds, said = _audited(path)
        assert status in (0, 1, 2), (name, path, status, said[-2_000:])
        assert "Traceback" not in said, (name, said[-2_000:])
        assert status != 2 or said.count("\n") == 1, (name, said[-2_000:])
        told[f"{name}: {'read' if status < 2 else 'refused'}"] += 1
        if seconds > longest:
            slowest, longest = name, seconds
    told[f"seconds of processor time for the slowest, {slowest}"] = round(longest)
    return told


def _audited(path: Path) -> tuple[int, float, str]:
    """Audit a file in a child; return its status (< 0: a signal), seconds and stderr."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            status = 70
            try:
                limit = (FILE_SECONDS, FILE_SECONDS + 1)
                resource.setrlimit(resource.RLIMIT_CPU, limit)
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                os.dup2(0, 1)
                os.dup2(said.fileno(), 2)
                status = main([str(path), "--no-certify"])
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status, used = os.wait4(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, text


def _files(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    for number, (name, make) in enumerate(BUILT.items()):
        home = folder / f"built{number}"
        home.mkdir()
        yield name, make(home)
    sound = _sound(folder)
    number = 0
    while True:
        name, path = rng.choice(sound)
        number += 1
        home = folder / f"mutant{number}"
        home.mkdir()
        other = home / path.name
        other.write_bytes(_changed(path.read_bytes(), rng))
        if path.name.endswith(".json"):
            for shard in path.parent.glob("shard*"):
                (home / shard.name).write_bytes(shard.read_bytes())
        yield f"mutated {name}", other


def _sound(folder: Path) -> list[tuple[str, Path]]:
    tensors = {"a.weight": torch.randn(12, 8), "b.weight": torch.randn(4, 4).half()}
    home = folder / "sound"
    home.mkdir()
    write_safetensors(home / "w.safetensors", tensors)
    torch.save(tensors, home / "zip.pt")
    torch.save(tensors, home / "legacy.pt", _use_new_zipfile_serialization=False)
    write_safetensors(home / "shard1.safetensors", {"a.weight": tensors["a.weight"]})
    torch.save({"b.weight": tensors["b.weight"]}, home / "shard2.bin")
    write_index(
        home / "model.index.json",
        {"a.weight": "shard1.safetensors", "b.weight": "shard2.bin"},
    )
    return [
        ("safetensors", home / "w.safetensors"),
        ("checkpoint", home / "zip.pt"),
        ("old checkpoint", home / "legacy.pt"),
        ("index", home / "model.index.json"),
    ]


def _changed(data: bytes, rng: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        # The head of a file says more than its numbers.
        place = rng.randrange(min(len(content), 600) if rng.random() < 0.7 else len(content))
        kind = rng.randrange(4)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.randrange(256)
        elif kind == 2:
            content[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif len(content) > 40:
            del content[place : place + rng.randrange(1, 30)]
    return bytes(content)


def _pickled_lists(home: Path) -> Path:
    path = home / "w.pt"
    lists = b"\x80\x02](" + b"]" * LISTS + b"e."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("w/data.pkl", lists)
        archive.writestr("w/version", b"3")
        archive.writestr("w/byteorder", b"little")
    return path


def _nested_lists(home: Path) -> Path:
    path = home / "w.pt"
    deep = b"\x80\x02" + b"](" * 300_000 + b"e" * 300_000 + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("w/data.pkl", deep)
        archive.writestr("w/version", b"3")
    return path


def _bare_pickle(home: Path) -> Path:
    path = home / "w.bin"
    path.write_bytes(pickle.dumps([[] for _ in range(LISTS)], 2))
    return path


def _fifo(home: Path) -> Path:
    os.mkfifo(home / "w.safetensors")
    return home / "w.safetensors"


def _index_to(shard: Callable[[Path], str]) -> Callable[[Path], Path]:
    def make(home: Path) -> Path:
        return write_index(home / "model.index.json", {"a": shard(home)})

    return make


def _fifo_shard(home: Path) -> str:
    os.mkfifo(home / "shard1")
    return "shard1"


def _link_out(home: Path) -> str:
    (home / "shard1.safetensors").symlink_to("/etc/passwd")
    return "shard1.safetensors"


def _link_loop(home: Path) -> str:
    (home / "shard1").symlink_to("shard2")
    (home / "shard2").symlink_to("shard1")
    return "shard1"


def _device(home: Path) -> str:
    (home / "shard1").symlink_to("/dev/zero")
    return "shard1"


def _itself(home: Path) -> str:
    return "model.index.json"


def _many_shards(home: Path) -> Path:
    return write_index(home / "model.index.json", {f"t{i}": f"s{i}" for i in range(400_000)})


def _many_names(home: Path) -> Path:
    write_safetensors(home / "s", {"a": torch.ones(2, 2)})
    return write_index(home / "model.index.json", {f"t{i}": "s" for i in range(600_000)})


def _many_tensors(home: Path) -> Path:
    one = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
    header = {f"t{i}": one | {"data_offsets": [4 * i, 4 * i + 4]} for i in range(50_000)}
    path = home / "w.safetensors"
    path.write_bytes(safetensors_bytes(header, bytes(200_000)))
    return path


def _deep_header(home: Path) -> Path:
    path = home / "w.safetensors"
    path.write_bytes(safetensors_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""))
    return path


def _huge_shape(home: Path) -> Path:
    header, data = header_and_data({"a": torch.ones(2, 2)})
    header["a"]["shape"] = [2**62, 2**62, 0]
    path = home / "w.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    return path


def _digits(home: Path) -> Path:
    path = home / "w.safetensors"
    path.write_bytes(safetensors_bytes(b'{"a":{"shape":[' + b"9" * 4_000_000 + b"]}}", b""))
    return path


def _bomb(home: Path) -> Path:
    path = home / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(256 << 20))
        archive.writestr("w/version", b"3")
    return path


def _many_entries(home: Path) -> Path:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        for i in range(60_000):
            archive.writestr(f"w/data/{i}", b"")
        archive.writestr("w/data.pkl", b"\x80\x02].")
        archive.writestr("w/version", b"3")
    (home / "w.pt").write_bytes(raw.getvalue())
    return home / "w.pt"


def _policy_json(home: Path) -> Path:
    (home / "w.json").write_text(json.dumps({"entries": []}))
    return home / "w.json"


BUILT: dict[str, Callable[[Path], Path]] = {
    "3 million lists in a checkpoint": _pickled_lists,
    "300,000 lists in each other": _nested_lists,
    "3 million lists in a bare pickle": _bare_pickle,
    "a FIFO": _fifo,
    "an index that leads to a FIFO": _index_to(_fifo_shard),
    "an index that leads out by a link": _index_to(_link_out),
    "an index that leads to links in a circle": _index_to(_link_loop),
    "an index that leads to a device": _index_to(_device),
    "an index that leads to itself": _index_to(_itself),
    "an index of 400,000 shards": _many_shards,
    "an index of 600,000 names in one shard": _many_names,
    "50,000 tensors": _many_tensors,
    "a header of 100,000 lists in each other": _deep_header,
    "a shape of 2^124 numbers": _huge_shape,
    "a number of 4 million digits": _digits,
    "a compressed entry of 256 MiB": _bomb,
    "60,000 entries": _many_entries,
    "a policy": _policy_json,
}
