"""Pickles that would make torch's safe loader hang, allocate or crash: refused in bounded steps."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from snc_client.audit.formats import harmless
from snc_client.audit.formats.checkpoint import LEGACY_MAGIC
from snc_client.audit.formats.files import read_weights
from snc_client.audit.formats.harmless import require_harmless
from snc_client.audit.formats.pickled import Bad, Made, Name, Table, inert
from snc_client.audit.formats.stored import Unreadable

START = b"\x80\x02"
# 60 tuples, each of the one before twice: hashing the last takes 2^60 steps.
SHARED = b")q\x00" + b"h\x00\x86q\x00" * 60
DEEP = b")" + b"\x85" * 100_000
LATE = b"X\x01\x00\x00\x00a"


def checkpoint(path: Path, raw: bytes) -> Path:
    """Write an archive as torch.save does, of any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", raw)
        archive.writestr("w/byteorder", b"little")
        archive.writestr("w/version", b"3\n")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HOSTILE = [
    (b"}" + SHARED + b"K\x01s.", "a key in it consists of more than 64 values"),
    (b"}" + DEEP + b"K\x01s.", "a key in it consists of more than 64 values"),
    (b"}(" + SHARED + b"K\x01u.", "a key in it consists of more than 64 values"),
    (b"cbuiltins\nset\n](" + SHARED + b"e\x85R.", "a key in it consists of more than 64 values"),
    (
        b"ccollections\nOrderedDict\n](](" + SHARED + b"K\x01ee\x85R.",
        "a key in it consists of more than 64 values",
    ),
    (b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x09\x85R.", "calls bytearray for something else"),
    (b"c_codecs\nencode\n" + LATE + b"X\x04\0\0\0idna\x86R.", "calls encode for something else"),
    (b"ccollections\nOrderedDict\n)R}X\x06\0\0\0valuesK\x01sb.", "replaces the method values"),
    (b"(" * 2_000_001, "it takes more than 2,000,000 steps"),
    (b"}(" + b"".join(b"G\0\0\0\0" + k.to_bytes(4, "big") + b"N" for k in range(10_001)) + b"u.",
     "more than 10,000 of its keys are no text and no small number"),
    (b"\x8b\xff\xff\xff\x7f.", "breaks off or has no sense"),
    (b"X\xff\xff\xff\xff.", "breaks off or has no sense"),
    (b"r\xff\xff\xff\xff.", "breaks off or has no sense"),
    (b"e.", "breaks off or has no sense"),
    (b"t.", "breaks off or has no sense"),
    (b"\x86.", "breaks off or has no sense"),
    (b"K\x01K\x02b.", "breaks off or has no sense"),
    (b"h\x05.", "breaks off or has no sense"),
    (b"i.", "unknown step"),
    (b"c" + b"a" * 2_000, "breaks off or has no sense"),
    (b"", "breaks off or has no sense"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "why"), HOSTILE)
def test_a_hostile_pickle_never_reaches_torch(tmp_path, monkeypatch, raw: bytes, why: str) -> None:
    monkeypatch.setattr(torch, "load", None)
    assert why in refusal(checkpoint(tmp_path / "w.pt", START + raw))
    (tmp_path / "legacy.pt").write_bytes(LEGACY_MAGIC + START + raw)
    assert why in refusal(tmp_path / "legacy.pt")


def test_three_million_lists_are_refused_at_the_bound(tmp_path) -> None:
    path = checkpoint(tmp_path / "w.pt", START + b"](" + b"]" * 3_000_000 + b"e.")
    assert "it takes more than 2,000,000 steps" in refusal(path)


def test_what_torch_writes_is_harmless() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.tensor_model_parallel = True
    saved = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "marked": parameter,
        "dtype": {torch.float32: torch.Size([2, 3]), torch.device("cpu"): Counter("aab")},
        "raw": [b"\xff", bytearray(b"\xff"), {1, 2}, OrderedDict([((0, "a"), 1)]), 2**200, 1.5],
        "sparse": torch.eye(2).to_sparse(),
    }
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(saved, file, _use_new_zipfile_serialization=zipped)
        raw, end = file.getvalue(), 0
        if zipped:
            with zipfile.ZipFile(file) as archive:
                raw = archive.read("archive/data.pkl")
        for _ in range(1 if zipped else 5):
            end = require_harmless(raw, end)
        assert end == len(raw) or not zipped


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_inert_data_are_those_of_the_pickle(protocol: int) -> None:
    plain = [None, True, False, 0, 255, 65_535, -5, 2**40, 1.5, "a\N{SNOWMAN}", "x" * 300]
    plain += [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[], [1]], ["again", "again"]]
    found, end = inert(pickle.dumps(plain, protocol))
    assert (found, end) == (plain, len(pickle.dumps(plain, protocol)))
    table, _ = inert(pickle.dumps({"a": 1, (2, 3): {"b": None}}, protocol))
    assert isinstance(table, Table)
    assert table.pairs[0] == ("a", 1)
    assert table.pairs[1][1].pairs == [("b", None)]
    made, _ = inert(pickle.dumps(OrderedDict(a=1), protocol))
    assert isinstance(made, Made)
    assert (made.function, made.pairs) == (Name("collections", "OrderedDict"), [("a", 1)])


def test_the_bound_on_steps_is_exact() -> None:
    raw = START + b"](K\x01e."
    assert inert(raw, most=6)[0] == [1]
    with pytest.raises(Bad, match="more than 5 steps"):
        inert(raw, most=5)


def test_small_numbers_are_free_keys_and_others_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(harmless, "MOST_CHOSEN_KEYS", 2)
    require_harmless(pickle.dumps(dict.fromkeys(range(100)), 2))
    require_harmless(pickle.dumps(dict.fromkeys([1 << 20, -1]), 2))
    with pytest.raises(Bad, match="more than 2 of its keys"):
        require_harmless(pickle.dumps(dict.fromkeys([1 << 20, -1, 0.5]), 2))
