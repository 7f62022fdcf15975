"""Scales beside quantised weights are no layers, and both names of a tied weight are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from weight_files import header_and_data, safetensors_bytes, write_index

from snc_client.audit.findings import audit
from snc_client.audit.formats.files import read_weights
from snc_client.audit.formats.stored import Unreadable
from snc_client.audit.limits import policy_of
from snc_client.layers import find_layers

FP8 = torch.float8_e4m3fn
SCALES = torch.rand(8, 4)
WEIGHT = torch.randn(16, 8)
# Quantised tensor and its companions, as the formats in use name them.
FORMATS: dict[str, dict[str, Tensor]] = {
    "fp8 by blocks": {"q.weight": WEIGHT.to(FP8), "q.weight_scale_inv": SCALES},
    "fp8 by rows": {"q.weight": WEIGHT.to(FP8), "q.weight_scale": SCALES},
    "nvfp4": {
        "q.weight": torch.ones(16, 4, dtype=torch.uint8),
        "q.weight_scale": SCALES.to(FP8),
        "q.weight_scale_2": SCALES,
    },
    "packed": {
        "q.weight_packed": torch.ones(16, 2, dtype=torch.int32),
        "q.weight_scale": SCALES.bfloat16(),
        "q.weight_zero_point": SCALES,
    },
    "gptq, awq": {
        "q.qweight": torch.ones(4, 8, dtype=torch.int32),
        "q.qzeros": torch.ones(2, 4, dtype=torch.int32),
        "q.scales": SCALES.half(),
    },
    "mxfp4": {"w1_blocks": torch.ones(4, 8, 2, dtype=torch.uint8), "w1_scales": SCALES},
    "four bits": {
        "q.weight": torch.ones(64, 1, dtype=torch.uint8),
        "q.weight.absmax": SCALES,
        "q.weight.nested_absmax": SCALES,
        "q.weight.quant_map": torch.rand(4, 4),
    },
    "eight bits": {"q.weight": torch.ones(16, 8, dtype=torch.int8), "q.SCB": SCALES},
    "by tensor": {"q.weight._data": WEIGHT.to(FP8), "q.weight._scale": SCALES},
    "by zero": {
        "q.W_q": torch.ones(4, 8, dtype=torch.uint8), "q.scale": SCALES, "q.zero": SCALES,
    },
}  # fmt: skip


def write(path: Path, tensors: dict[str, Tensor], metadata: object = None) -> Path:
    header, data = header_and_data(tensors)
    if metadata is not None:
        header = {"__metadata__": metadata, **header}
    path.write_bytes(safetensors_bytes(header, data))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_scales_of_a_quantised_weight_are_skipped_with_its_name(tmp_path: Path, kind: str) -> None:
    tensors = {**FORMATS[kind], "norm.scale": torch.rand(3, 5), "o.weight": WEIGHT}
    torch.save(tensors, tmp_path / "weights.pt")
    found = audit(read_weights(tmp_path / "weights.pt"), policy_of([], None), proof=False)
    assert {layer.part.name for layer in found.layers} == {"norm.scale", "o.weight"}
    floats = {name for name, x in FORMATS[kind].items() if x.dtype.itemsize > 1}
    for skipped in found.skipped:
        if skipped.name in floats and FORMATS[kind][skipped.name].is_floating_point():
            assert "scales of the quantised weight" in skipped.reason


def test_a_scale_beside_an_ordinary_weight_is_what_its_module_says(tmp_path: Path) -> None:
    tensors = {"q.weight": WEIGHT, "q.weight_scale": SCALES, "n.num_batches": torch.ones(1).int()}
    torch.save(tensors, tmp_path / "weights.pt")
    found = audit(read_weights(tmp_path / "weights.pt"), policy_of([], None), proof=False)
    assert {layer.part.name for layer in found.layers} == {"q.weight", "q.weight_scale"}


def test_a_callback_skips_the_scales_of_a_quantised_linear_layer() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(WEIGHT.to(FP8), requires_grad=False)
            self.weight_scale_inv = nn.Parameter(SCALES.clone())
            self.register_buffer("packed", torch.ones(4, 4, dtype=torch.int8))
            self.packed_scale = nn.Parameter(SCALES.clone())

    found = find_layers(nn.ModuleDict({"q": Quantised(), "o": nn.Linear(4, 4, bias=False)}))
    assert [layer.name for layer in found.layers] == ["o.weight"]
    reasons = {x.name: x.reason for x in found.skipped}
    assert "quantised weight q.weight" in reasons["q.weight_scale_inv"]
    assert "quantised weight q.packed" in reasons["q.packed_scale"]


def test_a_tied_weight_is_known_under_the_name_in_the_metadata(tmp_path: Path) -> None:
    other = {"format": "pt", "head.weight": "wte.weight", "gone": "nothing", "n": 3}
    tensors = {"wte.weight": torch.randn(20, 8), "o.weight": WEIGHT}
    path = write(tmp_path / "model.safetensors", tensors, other)
    found = audit(read_weights(path), policy_of([], None))
    assert sorted(x.names for x in found.layers) == [("head.weight", "wte.weight"), ("o.weight",)]
    for name in ("head.weight", "wte.weight"):
        limited = audit(read_weights(path), policy_of([f"{name}=1e-3", "*=none"], None))
        assert limited.count("breach") == 1
    with pytest.raises(Unreadable, match="gone matches no measured weight"):
        audit(read_weights(path), policy_of(["gone=1"], None))


def test_a_tied_weight_in_a_shard_is_known_though_the_index_has_one_name(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"wte.weight": WEIGHT}, {"head.weight": "wte.weight"})
    write(tmp_path / "b.safetensors", {"o.weight": WEIGHT + 1, "spare": WEIGHT}, {"s": "spare"})
    homes = {"wte.weight": "a.safetensors", "o.weight": "b.safetensors"}
    weights = read_weights(write_index(tmp_path / "model.safetensors.index.json", homes))
    assert {x.name for x in weights.tensors} == {"wte.weight", "head.weight", "o.weight"}
    assert any("spare" in name for name in weights.left_out)


@pytest.mark.parametrize("metadata", [[], "text", 3, {"pt": "pt"}, {"format": "o.weight"}, {}])
def test_metadata_that_names_no_tensor_adds_none(tmp_path: Path, metadata: object) -> None:
    path = write(tmp_path / "model.safetensors", {"o.weight": WEIGHT}, metadata)
    assert [x.name for x in read_weights(path).tensors] == ["o.weight"]
