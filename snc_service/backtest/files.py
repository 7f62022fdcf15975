"""Recorded runs in ``.npz`` files, read as untrusted input.

============ ============ ======================================================================
array        shape        meaning
============ ============ ======================================================================
``sigma``    [T, L]       of each layer after each training step; required
``names``    [L] text     layer names
``s0``       [L]          sigma before training; without it the first row registers the layers
``fro``      [T, L]       Frobenius norm
``gnorm``    [T, L]       gradient norm
``unorm``    [T, L]       norm of the update
``loss``     [T]          training loss
``ggrad``    [T]          norm of all gradients together
``lr``       [T]          learning rate
``vnames``   [V] text     names of 1-d parameters; with ``vnorm``
``vnorm``    [T, V]       their norms
============ ============ ======================================================================

Other arrays are ignored. Row t is step t + 1, ``s0`` is step 0. NaN is a measurement.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from snc_service.backtest.columns import rows
from snc_service.store.types import RunRows
from snc_service.wire import ABSENT, WireError
from snc_service.wire.checks import MAX_LAYERS, MAX_STEP, printable, shown

METRICS: Final = {"sigma": "sigma", "fro": "frobenius", "gnorm": "grad_norm",
                  "unorm": "update_norm"}  # fmt: skip
SCALARS: Final = {"loss": "loss", "ggrad": "grad_norm", "lr": "lr"}
MOST_VALUES: Final = 2**26  # of one array; 256 MiB in float32
MOST_NAME_CHARACTERS: Final = 256
MOST_HEADER_BYTES: Final = 4_096
PIECE: Final = 256  # rows judged at a time

Array = npt.NDArray[Any]


def read_run(path: Path, size: int = PIECE, *, without: Collection[str] = ()) -> Iterator[RunRows]:
    """Yield the rows of one file, ``size`` at a time; all are checked before the first is yielded.

    Metrics named in ``without`` are left out, as if the job had not reported them. Memory: the
    arrays of one file. Raises `WireError` naming file and array, and OSError if the file cannot be
    read.
    """
    where = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            known = {info.filename: info for info in archive.infolist()}
            sigma = _array(archive, known, "sigma", where, "f", 2)
            names = _array(archive, known, "names", where, "U", 1)
            found = {
                key: _array(archive, known, key, where, "f", 2 if key in METRICS else 1)
                for key in (*METRICS, *SCALARS, "s0")
                if f"{key}.npy" in known and key != "sigma"
            }
            vectors = None
            if "vnames.npy" in known:
                vectors = (
                    _array(archive, known, "vnames", where, "U", 1),
                    _array(archive, known, "vnorm", where, "f", 2),
                )
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(where, f"must be an .npz file of arrays: {shown(str(error))}") from None
    layers = _layers(names, where)
    _agree(sigma, layers, found, where)
    found = {key: values for key, values in found.items() if METRICS.get(key) not in without}
    found["sigma"] = sigma
    if vectors is not None and len(vectors[0]):
        layers = _with_vectors(layers, found, *vectors, where)
    return _rows(path.stem, layers, found, size)


def _with_vectors(
    layers: tuple[str, ...], found: dict[str, Array], names: Array, norms: Array, where: str
) -> tuple[str, ...]:
    """Append 1-d parameters to the layers in place: rows with a norm and nothing else."""
    every = _layers(np.concatenate((np.array(layers), names)), where)
    num_rows, num_vectors = len(found["sigma"]), len(names)
    if norms.shape != (num_rows, num_vectors):
        raise WireError(
            f"{where}: vnorm",
            f"must be {[num_rows, num_vectors]} like sigma, got {list(norms.shape)}",
        )
    found.setdefault("fro", np.full((num_rows, len(layers)), ABSENT))
    for key in (*METRICS, "s0"):
        if key in found:
            rows_of = norms if key == "fro" else np.full(norms.shape, ABSENT)
            more = np.full(num_vectors, ABSENT) if key == "s0" else rows_of
            found[key] = np.concatenate((found[key], more), axis=-1, dtype=np.float32)
    return every


def _rows(
    run: str, layers: tuple[str, ...], arrays: dict[str, Array], size: int
) -> Iterator[RunRows]:
    first = arrays.pop("s0", None)
    if first is not None:
        yield from rows(run, layers, [0], {"sigma": first[None]}, {})
    metrics = {METRICS[key]: arrays[key] for key in METRICS if key in arrays}
    scalars = {SCALARS[key]: arrays[key] for key in SCALARS if key in arrays}
    steps = range(1, len(arrays["sigma"]) + 1)
    yield from rows(run, layers, steps, metrics, scalars, size=size)


def _array(
    archive: zipfile.ZipFile,
    known: dict[str, zipfile.ZipInfo],
    key: str,
    where: str,
    kind: str,
    ndim: int,
) -> Array:
    """Read one array after a check of its header, against pickles and oversized arrays."""
    info, field = known.get(f"{key}.npy"), f"{where}: {key}"
    if info is None:
        raise WireError(field, "must be there, got no such array")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, field)
        wanted = "text" if kind == "U" else "floating-point numbers"
        if dtype.kind != kind or dtype.hasobject or len(shape) != ndim:
            raise WireError(
                field,
                f"must hold {wanted} in {ndim} dimensions, got {shown(str(dtype))} "
                f"{shown(list(shape))}",
            )
        count = 1
        for extent in shape:
            count *= extent
        if count > MOST_VALUES or dtype.itemsize > 4 * MOST_NAME_CHARACTERS:
            raise WireError(field, f"must hold at most {MOST_VALUES} values, got {shown(shape)}")
        if kind == "U" and count > MAX_LAYERS:
            raise WireError(field, f"must be at most {MAX_LAYERS} layers, got {count}")
        data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise WireError(field, f"must hold {count} values as its header says, got fewer")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    if kind == "U":
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite
        return values.astype(np.float32)


def _header(file: IO[bytes], field: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise WireError(field, f"must be a .npy array of version 1 or 2, got {version}")
    shape, fortran, dtype = readers[version](file, max_header_size=MOST_HEADER_BYTES)
    if any(not 0 <= extent <= MAX_STEP for extent in shape):
        raise WireError(field, f"must have a shape, got {shown(shape)}")
    return shape, fortran, dtype


def _layers(names: Array, where: str) -> tuple[str, ...]:
    layers = tuple(
        printable(str(name), f"{where}: names", max_bytes=MOST_NAME_CHARACTERS) for name in names
    )
    if not layers or len(set(layers)) != len(layers):
        raise WireError(f"{where}: names", "must be one or more, none of them twice")
    return layers


def _agree(sigma: Array, layers: tuple[str, ...], found: dict[str, Array], where: str) -> None:
    num_rows, num_layers = sigma.shape
    if num_layers != len(layers) or num_rows == 0:
        raise WireError(
            f"{where}: sigma",
            f"must be rows x {len(layers)} layers, as there are names, got {list(sigma.shape)}",
        )
    for key, values in found.items():
        shape = {"s0": (num_layers,)}.get(key, sigma.shape if key in METRICS else (num_rows,))
        if values.shape != shape:
            raise WireError(
                f"{where}: {key}", f"must be {list(shape)} like sigma, got {list(values.shape)}"
            )
