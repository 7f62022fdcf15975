"""Files as they come: sound ones are read exactly, lying ones get a sentence, none runs code."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from spectra import gaussian
from torch import Tensor, nn
from weight_files import header_and_data, safetensors_bytes, write_index, write_safetensors

from snc_client.audit.formats import checkpoint
from snc_client.audit.formats.files import read_weights
from snc_client.audit.formats.stored import Unreadable, Weights
from snc_client.audit.matrices import reason

TENSORS = {
    "b.10.weight": gaussian(7, 5),
    "b.2.weight": gaussian(3, 4, seed=1).bfloat16(),
    "experts": gaussian(12, 6, seed=2).half().view(4, 3, 6),
    "double": gaussian(4, 4, seed=3).double(),
    "bias": gaussian(1, 9, seed=4)[0],
    "ids": torch.arange(6).view(2, 3),
    "mask": torch.tensor([[True, False]]),
    "phase": torch.ones(2, 2, dtype=torch.complex64),
    "small": gaussian(2, 3).to(torch.float8_e4m3fn),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
}
MEASURED = {"b.10.weight", "b.2.weight", "experts", "double"}


def tensors_of(weights: Weights) -> dict[str, Tensor]:
    """Return what can be measured, read whole."""
    return {t.name: t.read(0, t.shape[0]) for t in weights.tensors if not reason(t)}


def check(weights: Weights, held: Mapping[str, Tensor] = TENSORS) -> None:
    """Every tensor is there with its dtype and shape, and what is measured has every bit."""
    found = {t.name: (t.shape, t.dtype) for t in weights.tensors}
    assert found == {k: (tuple(t.shape), str(t.dtype)[6:]) for k, t in held.items()}
    read = tensors_of(weights)
    assert set(read) == MEASURED
    for name, tensor in read.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    experts = next(t for t in weights.tensors if t.name == "experts")
    assert torch.equal(experts.read(2, 3), TENSORS["experts"][2:3])


def refusal(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        tensors_of(read_weights(path))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# -- safetensors


def test_every_dtype_of_a_safetensors_file_is_read_or_named(tmp_path) -> None:
    weights = read_weights(write_safetensors(tmp_path / "w.safetensors", TENSORS))
    check(weights)
    assert weights.format == "safetensors"
    names = [t.name for t in weights.tensors]
    assert names.index("b.2.weight") < names.index("b.10.weight")


def test_a_file_is_known_by_its_content(tmp_path) -> None:
    check(read_weights(write_safetensors(tmp_path / "weights.bin", TENSORS)))
    torch.save(TENSORS, tmp_path / "model")
    check(read_weights(tmp_path / "model"))
    torch.save(TENSORS, tmp_path / "model.safetensors")  # torch would not load it either
    assert "no sound safetensors file" in refusal(tmp_path / "model.safetensors")


def test_a_padded_header_and_no_tensors_are_sound(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(b"{}      ", b""))
    assert read_weights(path).tensors == ()


def lied(**changes: object) -> tuple[dict, bytes]:
    """Return two tensors of 4 and 6 float32, and lies about the second."""
    header, data = header_and_data({"a": torch.ones(2, 2), "b": torch.ones(2, 3)})
    header["b"].update(changes)
    return header, data


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (*lied(data_offsets=[8, 32]), "b overlaps the tensor before it"),
        (*lied(data_offsets=[0, 24]), "overlaps the tensor before it"),
        (*lied(data_offsets=[20, 44]), "b leaves a hole before it"),
        (lied()[0], bytes(39), "b ends at byte 40 of 39: the file is cut off"),
        (lied()[0], bytes(41), "1 bytes of data belong to no tensor"),
        (*lied(shape=[2, 4]), "b has 192 bits where F32 of shape [2, 4] has 256"),
        (*lied(dtype="F64"), "b has 192 bits where F64"),
        (*lied(dtype="F4", shape=[3, 17]), "has 204"),
        (*lied(dtype="Q7"), "b is of dtype Q7, which the format has not"),
        (*lied(dtype=["F32"]), "entry b must hold"),
        (*lied(data_offsets=[40, 16]), "entry b must hold"),
        (*lied(data_offsets=[16.0, 40.0]), "entry b must hold"),
        (*lied(data_offsets=[-8, 16]), "entry b must hold"),
        (*lied(data_offsets=[16, 40, 40]), "entry b must hold"),
        (*lied(shape=[True, 6]), "entry b must hold"),
        (*lied(shape=[2**62] * 64), "b has 192 bits"),
        (*lied(shape=[1] * 65), "entry b must hold"),
        (*lied(shape=[10**30, 0]), "entry b must hold"),
        (*lied(shape=None), "entry b must hold"),
        (*lied(more=1), "entry b must hold"),
        ({"a": 5}, b"", "entry a must hold"),
        (b'{"a": {}, "a": {}}', b"", "the key 'a' twice"),
        (b"[1]", b"", "not a JSON object"),
        (b"{nothing", b"", "not JSON"),
        (b'{"a": NaN}', b"", "not JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", b"", "not JSON"),
        (b'{"a": ' + b"[" * 100_000, b"", "not JSON"),
        (b'{"\xff": 1}', b"", "not JSON"),
    ],
)
def test_a_lying_safetensors_file_is_refused(tmp_path, header, data, why: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    assert why in refusal(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes, it has 0 in all"),
        (b"\x02\x00", "it has 2 in all"),
        ((2**63).to_bytes(8, "little") + b"{}", f"{2**63} bytes, it has 10 in all"),
        (b"\x20" + bytes(7) + b"{}", "32 bytes, it has 10 in all"),
    ],
)
def test_a_header_longer_than_its_file_is_refused(tmp_path, content: bytes, why: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert why in refusal(path)


def test_an_endless_header_is_refused_before_it_is_read(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    length = 1 << 40
    path.write_bytes(length.to_bytes(8, "little") + b"{")
    os.truncate(path, length + 8)  # sparse: takes no room on the disk
    assert "more than" in refusal(path)


def test_a_file_cut_short_while_it_is_read_is_refused(tmp_path) -> None:
    path = write_safetensors(tmp_path / "w.safetensors", {"a": torch.ones(8, 8)})
    (tensor,) = read_weights(path).tensors
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(Unreadable, match="became shorter"):
        tensor.read(0, 8)
    path.unlink()
    with pytest.raises(Unreadable, match="No such file"):
        tensor.read(0, 8)


# -- an index of shards


def test_an_index_leads_to_its_shards_whatever_their_format(tmp_path) -> None:
    names = list(TENSORS)
    first = {name: TENSORS[name] for name in names[:5]}
    extra = {"unused": torch.ones(2, 2)}
    write_safetensors(tmp_path / "one.safetensors", {**first, **extra})
    torch.save({name: TENSORS[name] for name in names[5:]}, tmp_path / "two.bin")
    homes = {name: "one.safetensors" if name in first else "two.bin" for name in names}
    weights = read_weights(write_index(tmp_path / "model.safetensors.index.json", homes))
    check(weights)
    assert weights.format == "index of 2 shards"
    assert weights.left_out == ("unused (in one.safetensors, not in the index)",)


@pytest.mark.parametrize(
    "shard", ["../w.safetensors", "/etc/hostname", "..", ".", "", "a/b", "a\\b", "C:w", "w\0"]
)
def test_a_shard_outside_the_folder_is_never_opened(tmp_path, shard: str) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"a": torch.ones(2, 2)})
    (tmp_path / "in").mkdir()
    index = write_index(tmp_path / "in" / "model.safetensors.index.json", {"a": shard})
    assert "a shard must lie beside its index" in refusal(index)


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path) -> None:
    index = write_index(tmp_path / "i.json", {"a": "w.safetensors"})
    assert "w.safetensors: No such file" in refusal(index)
    write_safetensors(tmp_path / "w.safetensors", {"b": torch.ones(2, 2)})
    assert "names a in w.safetensors, which does not hold it" in refusal(index)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": ["w"]}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "must lead to file names"),
        ('{"weight_map": ', "not JSON"),
        ('{"weight_map": {"a": "i.json"}}', "neither a safetensors file"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(tmp_path, content: str, why: str) -> None:
    (tmp_path / "i.json").write_text(content)
    assert why in refusal(tmp_path / "i.json")


# -- torch checkpoints


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_a_torch_checkpoint_is_read_from_where_trainers_put_it(tmp_path, zipped, key) -> None:
    path = tmp_path / "w.pt"
    # Torch cannot load its own float8 from the old format.
    held = {name: t for name, t in TENSORS.items() if zipped or name != "small"}
    optimizer = {"state": {0: {"exp_avg": torch.ones(9, 9)}}}
    saved = held if key is None else {key: held, "optimizer": optimizer, "epoch": 3}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    check(weights, held)
    assert weights.format == ("torch" if zipped else "torch legacy")
    assert weights.left_out == (() if key is None else ("optimizer", "epoch"))


def test_nested_models_are_joined_and_an_optimizer_is_left_out(tmp_path) -> None:
    held = {
        "generator": {"fc": {"weight": torch.ones(2, 2)}, "version": 3},
        "critic": {"weight": torch.ones(3, 2)},
        "optim_g": {"exp_avg": torch.ones(9, 9)},
    }
    torch.save(held, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert list(tensors_of(weights)) == ["generator.fc.weight", "critic.weight"]
    assert weights.left_out == ("generator.version", "optim_g")


def test_a_lone_tensor_and_parameters_are_read(tmp_path) -> None:
    torch.save(nn.Parameter(torch.ones(2, 3)), tmp_path / "w.pt")
    assert torch.equal(tensors_of(read_weights(tmp_path / "w.pt"))["tensor"], torch.ones(2, 3))


def test_tensors_without_plain_numbers_are_named(tmp_path) -> None:
    held = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, 3, device="meta"),
        "expanded": torch.ones(1).expand(100_000, 100_000),
        "view": torch.arange(12.0).view(3, 4).t(),
    }
    torch.save(held, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    why = {t.name: reason(t) for t in weights.tensors}
    assert "layout" in why["sparse"]
    assert "meta device" in why["meta"]
    assert "repeats the numbers" in why["expanded"]
    assert torch.equal(tensors_of(weights)["view"], held["view"])


def test_a_mapping_is_let_go_and_taken_up_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "LET_GO_BYTES", 1)
    torch.save(TENSORS, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    check(weights)
    torch.save({"b.10.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(Unreadable, match="changed while it was read"):
        tensors_of(weights)


@pytest.mark.parametrize(
    "held", [{}, {"epoch": 3}, {"model": {}}, [torch.ones(2, 2)], 5, {"a": [torch.ones(2)]}]
)
def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path, held) -> None:
    torch.save(held, tmp_path / "w.pt")
    assert "no sound torch checkpoint: it holds" in refusal(tmp_path / "w.pt")


def test_a_checkpoint_that_holds_itself_ends(tmp_path) -> None:
    held: dict = {"a": {}}
    held["model"] = held
    for key in range(30):
        held["a"][str(key)] = held["a"]
    torch.save(held, tmp_path / "w.pt")
    assert "holds no tensors" in refusal(tmp_path / "w.pt")


def test_two_tensors_of_one_name_are_refused(tmp_path) -> None:
    torch.save({"a.b": torch.ones(2, 2), "a": {"b": torch.ones(3, 3)}}, tmp_path / "w.pt")
    assert "two tensors have the name a.b" in refusal(tmp_path / "w.pt")


# -- code in a pickle


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def tar_trap(path: Path, trap: Trap, first: str = "sys_info") -> None:
    with tarfile.open(path, "w:", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for name in (first, "pickle", "tensors", "storages"):
            raw = pickle.dumps(trap, 2)
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "tar"])
def test_code_in_a_pickle_never_runs(tmp_path, monkeypatch, kind: str) -> None:
    # Torch would obey this variable if a caller left the decision open.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, trap = tmp_path / "w.pt", Trap(tmp_path / "sprung")
    held = {"a": torch.ones(2, 2), "config": trap}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"config": trap}, 2))
    elif kind == "tar":
        tar_trap(path, trap)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=kind == "zip")
    said = refusal(path)
    assert not trap.mark.exists()
    if kind in ("zip", "legacy"):
        assert "posix.mkdir" in said or "nt.mkdir" in said
        torch.load(path, weights_only=False)
        assert trap.mark.exists()  # the trap does work


@pytest.mark.parametrize("magic", [checkpoint.ZIP_MAGIC, checkpoint.LEGACY_MAGIC])
def test_a_tar_file_that_begins_like_a_checkpoint_never_reaches_torch(tmp_path, magic) -> None:
    tar_trap(tmp_path / "w.pt", Trap(tmp_path / "sprung"), first=magic.decode("latin-1"))
    assert (tmp_path / "w.pt").read_bytes().startswith(magic)
    assert "also a tar file" in refusal(tmp_path / "w.pt")


def test_a_pickled_module_is_refused_with_the_cure(tmp_path) -> None:
    torch.save(nn.Linear(3, 3), tmp_path / "w.pt")
    said = refusal(tmp_path / "w.pt")
    assert "torch.nn.modules.linear.Linear" in said
    assert "save model.state_dict() alone" in said


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **contents: bytes) -> Path:
    """Write a zip checkpoint anew, with other contents for some of its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in entries.items():
            archive.writestr(name, contents.pop(name.rpartition("/")[2], raw))
        for name, raw in contents.items():
            archive.writestr(f"w/{name}", raw)
    return path


def test_archives_that_torch_does_not_write_are_refused(tmp_path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(64, 64)}, path)
    whole = path.read_bytes()
    assert "compressed" in refusal(rewritten(path, zipfile.ZIP_DEFLATED))
    path.write_bytes(whole)
    assert "TorchScript" in refusal(rewritten(path, **{"constants.pkl": b"\x80\x02)."}))
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "no sound torch checkpoint" in refusal(path)


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(2, 4), "b": torch.ones(64, 64)}, path)
    with zipfile.ZipFile(path) as archive:
        sound = archive.read("w/data.pkl")
    # a: 8 numbers of shape (2, 4) -> 32 of shape (8, 4): they would be read on into b's record.
    lie = sound.replace(b"K\x08tq\x07QK\x00K\x02K\x04", b"K\x20tq\x07QK\x00K\x08K\x04")
    assert lie != sound
    assert "a claims other bytes" in refusal(rewritten(path, **{"data.pkl": lie}))


# -- what is no file of weights


def test_what_is_no_file_of_weights_is_named(tmp_path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("sigma")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a safetensors file" in refusal(text)
    assert "No such file" in refusal(tmp_path / "nothing")
    assert "is a folder without .metadata" in refusal(tmp_path)
    assert "regular file" in refusal(tmp_path / "pipe")
    assert "null" in refusal(Path("a\0b"))
    text.write_text(json.dumps({"config": 1}))
    assert "no index of shards" in refusal(text)
