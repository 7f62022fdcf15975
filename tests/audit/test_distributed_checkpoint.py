"""Folders of torch.distributed.checkpoint: real ones of two ranks, and hostile ones, unloaded."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from weight_files import write_index, write_safetensors

from snc_client.audit import main
from snc_client.audit.formats.files import read_weights
from snc_client.audit.formats.stored import Unreadable
from snc_client.audit.matrices import reason

RANKS = 2
TURNED = torch.arange(12.0).view(3, 4).t()


def model() -> nn.ModuleDict:
    """Return weights that two ranks cut into even, uneven and empty shards of rows and columns."""
    torch.manual_seed(0)
    experts = nn.Module()
    experts.experts = nn.Parameter(torch.randn(5, 4, 6))
    return nn.ModuleDict(
        {
            "even": nn.Linear(6, 8),
            "uneven": nn.Linear(5, 7),
            "one_row": nn.Linear(9, 1, bias=False),
            "columns": nn.Linear(5, 4, bias=False),
            "whole": nn.Linear(3, 4).bfloat16(),
            "stack": experts,
        }
    )


def rank(index: int, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=index, world_size=RANKS)
    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    layers = model()
    for key in ("even", "uneven", "one_row", "stack"):
        fully_shard(layers[key], mesh=mesh)
    cut = distribute_tensor(layers["columns"].weight.detach(), mesh, [Shard(1)])
    layers["columns"].weight = nn.Parameter(cut)
    optimizer = torch.optim.AdamW(layers["uneven"].parameters(), lr=0.0)
    layers["uneven"](torch.ones(2, 5)).sum().backward()
    optimizer.step()
    state = {"model": layers.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    dcp.save(state, checkpoint_id=folder / "whole")
    # The bare state dict, as torchtitan keeps a model.
    dcp.save(layers.state_dict(), checkpoint_id=folder / "bare")
    dcp.save({"a.weight": TURNED}, checkpoint_id=folder / "turned")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    mp.spawn(rank, args=(folder,), nprocs=RANKS)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of a sound checkpoint, to be spoilt."""
    return Path(shutil.copytree(saved / "whole", tmp_path / "step-3"))


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {t.name: t.read(0, t.shape[0]) for t in read_weights(path).tensors if not reason(t)}


def refusal(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        tensors_of(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def edited(folder: Path, change: Callable[[Metadata], None]) -> Path:
    """Change the metadata of a sound checkpoint in torch's own classes."""
    path = folder / ".metadata"
    found = pickle.loads(path.read_bytes())
    change(found)
    path.write_bytes(pickle.dumps(found))
    return folder


def index_of(found: Metadata, name: str, offset: tuple[int, ...]) -> MetadataIndex:
    return next(x for x in found.storage_data if x.fqn == name and tuple(x.offset or ()) == offset)


# -- real ones


@pytest.mark.parametrize("kind", ["whole", "bare", "whole/.metadata"])
def test_every_bit_of_a_sharded_checkpoint_is_read(saved: Path, kind: str) -> None:
    held = {name: p.detach() for name, p in model().named_parameters() if p.dim() > 1}
    found = read_weights(saved / kind)
    assert {t.name: (t.shape, t.dtype) for t in found.tensors} == {
        name: (tuple(p.shape), str(p.dtype)[6:]) for name, p in model().named_parameters()
    }
    read = tensors_of(saved / kind)
    assert read.keys() == held.keys()
    for name, weight in held.items():
        assert torch.equal(read[name], weight)
    stack = next(t for t in found.tensors if t.name == "stack.experts")
    assert torch.equal(stack.read(2, 4), held["stack.experts"][2:4])  # across two shards
    assert found.left_out == (("optimizer", "epoch") if "whole" in kind else ())


def test_the_report_encloses_a_float64_svd(saved: Path, capsys) -> None:
    assert main([str(saved / "whole"), "--threshold", "uneven*=0.01", "--json"]) == 1
    layers = {x["layer"]: x for x in json.loads(capsys.readouterr().out)["layers"]}
    for name in ("even", "uneven", "columns"):
        norm = float(torch.linalg.matrix_norm(model()[name].weight.detach().double(), 2))
        found = layers[f"{name}.weight"]
        assert found["sigma"] == pytest.approx(norm, rel=1e-5)
        assert norm <= found["sigma_upper"] <= norm * 1.0011
    assert layers["uneven.weight"]["verdict"] == "breach"


def test_a_transposed_tensor_keeps_its_places(saved: Path) -> None:
    assert torch.equal(tensors_of(saved / "turned")["a.weight"], TURNED)


# -- hostile ones


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_the_metadata_never_runs(folder: Path, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    edited(folder, lambda found: setattr(found, "planner_data", trap))
    assert "posix.mkdir belongs to no checkpoint" in refusal(folder)
    assert not trap.mark.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert trap.mark.exists()  # the trap does work


def test_code_in_a_piece_never_runs(folder: Path, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    torch.save(trap, tmp_path / "piece")

    def lead(found: Metadata) -> None:
        info = found.storage_data[index_of(found, "model.whole.weight", (0, 0))]
        info.offset, info.length = 0, (tmp_path / "piece").stat().st_size
        info.relative_path = "trap"

    shutil.copy(tmp_path / "piece", folder / "trap")
    assert "it is no plain tensor" in refusal(edited(folder, lead))
    assert not trap.mark.exists()


def shifted(found: Metadata, **changes: object) -> None:
    info = found.storage_data[index_of(found, "model.even.weight", (4, 0))]
    for key, value in changes.items():
        setattr(info, key, value)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"relative_path": "../x.distcp"}, "must lie beside its index"),
        ({"relative_path": "/etc/hostname"}, "must lie beside its index"),
        ({"relative_path": "gone.distcp"}, "gone.distcp: No such file"),
        ({"relative_path": "pipe"}, "must be a regular file"),
        ({"relative_path": "loop"}, "Too many levels of symbolic links"),
        ({"relative_path": 7}, "must be a file, an offset and a length"),
        ({"offset": 1}, "no torch archive"),
        ({"offset": -1}, "is the file cut off?"),
        ({"offset": 2**62}, "is the file cut off?"),
        ({"offset": 2**90}, "is the file cut off?"),
        ({"length": 2**40}, "is the file cut off?"),
        ({"length": 3}, "no torch archive"),
        ({"length": True}, "no torch archive"),
        ({"transform_descriptors": ["zstd"]}, "save without transforms"),
    ],
)
def test_a_piece_that_is_not_where_it_should_be_is_refused(folder, changes, why: str) -> None:
    os.mkfifo(folder / "pipe")
    os.symlink("loop", folder / "loop")
    edited(folder, lambda found: shifted(found, **changes))
    assert why in refusal(folder)


def pieces(found: Metadata, name: str = "model.even.weight") -> list:
    return found.state_dict_metadata[name].chunks


def twice(found: Metadata) -> None:
    pieces(found)[1].offsets = torch.Size([0, 0])


def overlapping(found: Metadata) -> None:
    chunk, key = pieces(found)[1], index_of(found, "model.even.weight", (4, 0))
    chunk.offsets = torch.Size([3, 0])
    found.storage_data[MetadataIndex(key.fqn, [3, 0])] = found.storage_data.pop(key)


def outside(found: Metadata) -> None:
    pieces(found)[1].offsets = torch.Size([5, 0])


def missing(found: Metadata) -> None:
    pieces(found).pop()


def unplaced(found: Metadata) -> None:
    found.storage_data.pop(index_of(found, "model.even.weight", (4, 0)))


def another_shape(found: Metadata) -> None:
    found.state_dict_metadata["model.even.weight"].size = torch.Size([6, 8])
    for at, chunk in enumerate(pieces(found)):
        chunk.offsets, chunk.sizes = torch.Size([3 * at, 0]), torch.Size([3, 8])
    key = index_of(found, "model.even.weight", (4, 0))
    found.storage_data[MetadataIndex(key.fqn, [3, 0])] = found.storage_data.pop(key)


def another_dtype(found: Metadata) -> None:
    found.state_dict_metadata["model.even.weight"].properties.dtype = torch.float64


def endless(found: Metadata) -> None:
    found.state_dict_metadata["model.even.weight"].size = torch.Size([2**62] * 9)


def itself(found: Metadata) -> None:
    chunks = pieces(found)
    chunks.append(chunks)


def no_size(found: Metadata) -> None:
    found.state_dict_metadata["model.even.weight"].size = (8, 6)


def no_name(found: Metadata) -> None:
    found.state_dict_metadata[("a", "b")] = found.state_dict_metadata["epoch"]


def nothing(found: Metadata) -> None:
    found.state_dict_metadata = {}


def no_tables(found: Metadata) -> None:
    found.storage_data = None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (twice, "have 24 of its 48 numbers"),
        (overlapping, "pieces of model.even.weight overlap"),
        (outside, "has a piece outside of it"),
        (missing, "have 24 of its 48 numbers"),
        (unplaced, "no place for a piece of model.even.weight"),
        (another_shape, "a FloatStorage of shape (4, 6), not as announced"),
        (another_dtype, "a FloatStorage of shape (4, 6), not as announced"),
        (endless, "must be a torch.Size"),
        (itself, "a list where a ChunkStorageMetadata is expected"),
        (no_size, "must be a torch.Size"),
        (no_name, "a name must be a text and stand once, got a tuple"),
        (nothing, "it holds no tensors, only nothing"),
        (no_tables, "a NoneType where a dict is expected"),
    ],
)
def test_lying_metadata_are_refused(folder: Path, change, why: str) -> None:
    assert why in refusal(edited(folder, change))


def test_a_piece_that_claims_more_than_its_archive_holds_is_refused(folder: Path) -> None:
    path = folder / "lie"
    torch.save(torch.ones(4, 6), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw[:-4] if name.endswith("/data/0") else raw)
    size = path.stat().st_size
    edited(folder, lambda found: shifted(found, relative_path="lie", offset=0, length=size))
    assert "claims more bytes than its archive holds" in refusal(folder)


def test_metadata_cut_off_anywhere_are_refused(folder: Path) -> None:
    path = folder / ".metadata"
    sound = path.read_bytes()
    for size in (*range(0, len(sound), 97), len(sound) - 1):
        path.write_bytes(sound[:size])
        assert "breaks off or has no sense" in refusal(folder)


def test_metadata_with_a_changed_byte_are_read_or_refused(folder: Path) -> None:
    path = folder / ".metadata"
    sound = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(len(sound), (400,), generator=generator).tolist():
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x15]) + sound[at + 1 :])
        with contextlib.suppress(Unreadable):  # nothing else may be raised
            tensors_of(folder)


def test_millions_of_lists_take_bounded_work(folder: Path) -> None:
    lists = b"\x80\x04](" + b"]" * 3_000_000 + b"e."
    (folder / ".metadata").write_bytes(lists)
    assert "a list where a Metadata is expected" in refusal(folder)


def test_an_endless_metadata_file_is_not_read(folder: Path) -> None:
    os.truncate(folder / ".metadata", 1 << 40)  # sparse: takes no room on the disk
    assert "more than" in refusal(folder)
    (folder / ".metadata").unlink()
    os.mkfifo(folder / ".metadata")
    assert "regular file" in refusal(folder)


# -- folders with an index


def test_a_folder_stands_for_its_only_index(tmp_path: Path) -> None:
    held = {"a.weight": torch.ones(2, 3)}
    (tmp_path / "blobs").mkdir()
    write_safetensors(tmp_path / "blobs" / "0f", held)
    hub = tmp_path / "snapshot"
    hub.mkdir()
    # As the cache of a hub has it: each file is a link out of the folder.
    os.symlink("../blobs/0f", hub / "model-1-of-1.safetensors")
    assert torch.equal(tensors_of(hub)["a.weight"], held["a.weight"])
    write_index(hub / "model.safetensors.index.json", {"a.weight": "model-1-of-1.safetensors"})
    assert read_weights(hub).format == "index of 1 shard"
    write_index(hub / "other.safetensors.index.json", {"a.weight": "x"})
    assert "has 2 files *.safetensors.index.json" in refusal(hub)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("fifo", "regular file"), ("loop", "Too many levels"), ("zero", "regular file")],
)
def test_a_shard_that_never_ends_is_not_opened(tmp_path: Path, kind: str, why: str) -> None:
    shard = tmp_path / "s.safetensors"
    if kind == "fifo":
        os.mkfifo(shard)
    else:
        os.symlink({"loop": "s.safetensors", "zero": "/dev/zero"}[kind], shard)
    write_index(tmp_path / "model.safetensors.index.json", {"a": "s.safetensors"})
    assert why in refusal(tmp_path)
