"""Files of weights, written here byte by byte: the readers under test have no part in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def header_and_data(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """Return the header of a sound safetensors file, to be lied in, and its data."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """Return a safetensors file of any header, sound or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a sound file; tensors keep their order."""
    header, data = header_and_data(tensors)
    path.write_bytes(safetensors_bytes({"__metadata__": {"format": "pt"}, **header}, data))
    return path


def write_index(path: Path, homes: Mapping[str, str]) -> Path:
    """Write an index of shards: tensor name -> file name."""
    path.write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(homes)}, indent=2)
    )
    return path
