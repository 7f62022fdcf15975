"""The batch: S steps x L layers x M metrics of one run, and K scalars of the same steps.

Binary form, little-endian::

    0    4 bytes   magic b"SNC1"
    4    4 bytes   u32 H, the header's length with its padding; (8 + H) % 8 == 0
    8    H bytes   JSON object in UTF-8, padded with spaces on the right
    8+H  4*S*M*L   float32 columns, C order [metric][step][layer]
    then 4*S*K     float32 scalars, C order [scalar][step]

NaN and the infinities are measurements and pass unchanged. "Not measured" is the bit pattern
`ABSENT`. The encoder maps every other NaN to the canonical quiet NaN, so no measured NaN equals
`ABSENT`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.wire.checks import (
    MAX_COLUMNS,
    MAX_HEADER_BYTES,
    MAX_LAYERS,
    MAX_STEPS,
    MAX_WRITER_BYTES,
    WireError,
    json_object,
    names,
    printable,
    shown,
    whole,
)

MEDIA_TYPE = "application/vnd.snc.batch.v1"
JSON_MEDIA_TYPE = "application/json"
# Differs between retries of one batch, so it is a header and not part of the frame.
POLICY_VERSION_HEADER = "SNC-Policy-Version"

MAGIC = b"SNC1"
ABSENT_BITS: Final = 0x7FC00001
QUIET_NAN_BITS: Final = 0x7FC00000
ABSENT: Final[np.float32] = np.uint32(ABSENT_BITS).view(np.float32)

Floats: TypeAlias = npt.NDArray[np.float32]

_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, eq=False)
class Batch:
    """One wire unit, checked at construction.

    ``values`` is float32 [M, S, L], ``scalar_values`` float32 [K, S]. ``seq`` starts at 0 and grows
    by one per writer. ``skipped`` sequence numbers were dropped just before this batch; they held
    ``dropped`` values. Raises `WireError` naming the field.
    """

    writer: str
    seq: int
    layers: str  # hash of the layer table
    steps: tuple[int, ...]
    metrics: tuple[str, ...]
    values: Floats
    scalars: tuple[str, ...] = ()
    scalar_values: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    times: tuple[float, ...] | None = None
    skipped: int = 0
    dropped: int = 0
    attempt: int | None = None

    def __post_init__(self) -> None:
        printable(self.writer, "writer", max_bytes=MAX_WRITER_BYTES)
        whole(self.seq, "seq")
        if not isinstance(self.layers, str) or not _HASH.fullmatch(self.layers):
            raise WireError("layers", f"must be 32 hex digits, got {shown(self.layers)}")
        _check_steps(self.steps)
        names(self.metrics, "metrics")
        names(self.scalars, "scalars")
        if not 1 <= len(self.metrics) + len(self.scalars) <= MAX_COLUMNS:
            raise WireError("metrics", f"and scalars together must be 1 to {MAX_COLUMNS}")
        self._check_shapes()
        whole(self.skipped, "skipped")
        whole(self.dropped, "dropped")
        if self.attempt is not None:
            whole(self.attempt, "attempt", most=2**31 - 1)

    def _check_shapes(self) -> None:
        num_steps = len(self.steps)
        if self.values.ndim != 3 or self.values.shape[:2] != (len(self.metrics), num_steps):
            raise WireError(
                "values",
                f"must be [{len(self.metrics)} metrics, {num_steps} steps, layers], "
                f"got {list(self.values.shape)}",
            )
        if self.values.shape[2] > MAX_LAYERS:
            raise WireError("values", f"must cover at most {MAX_LAYERS} layers")
        if self.scalars and self.scalar_values.shape != (len(self.scalars), num_steps):
            raise WireError(
                "scalars",
                f"must be [{len(self.scalars)} scalars, {num_steps} steps], "
                f"got {list(self.scalar_values.shape)}",
            )
        if self.times is not None and len(self.times) != num_steps:
            raise WireError("times", f"must be one per step ({num_steps}), got {len(self.times)}")

    @property
    def num_layers(self) -> int:
        """Return L. It must equal the layer table's length; it is 0 in a batch without metrics."""
        return int(self.values.shape[2])

    @property
    def num_values(self) -> int:
        """Return the number of values carried: M*S*L + K*S."""
        return int(self.values.size) + len(self.scalars) * len(self.steps)

    def metric(self, name: str) -> Floats | None:
        """Return the [S, L] columns of a metric, or None if the batch does not carry it."""
        return self.values[self.metrics.index(name)] if name in self.metrics else None

    def scalar(self, name: str) -> Floats | None:
        """Return the [S] column of a scalar, or None if the batch does not carry it."""
        return self.scalar_values[self.scalars.index(name)] if name in self.scalars else None


def absent(values: Floats) -> npt.NDArray[np.bool_]:
    """Return where ``values`` carry the "not measured" pattern. Arithmetic destroys the pattern."""
    mask: npt.NDArray[np.bool_] = (
        np.ascontiguousarray(values, dtype="<f4").view("<u4") == ABSENT_BITS
    )
    return mask


def encode(batch: Batch) -> bytes:
    """Return the binary form. Cost: one pass over the values to find NaN, and one copy."""
    header: dict[str, Any] = {
        "layers": batch.layers,
        "metrics": list(batch.metrics),
        "scalars": list(batch.scalars),
        "seq": batch.seq,
        "steps": list(batch.steps),
        "writer": batch.writer,
    }
    if batch.times is not None:
        header["times"] = list(batch.times)
    for key in ("skipped", "dropped"):
        if getattr(batch, key):
            header[key] = getattr(batch, key)
    if batch.attempt is not None:
        header["attempt"] = batch.attempt
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise WireError("header", f"must be at most {MAX_HEADER_BYTES} bytes, got {len(text)}")
    scalars = batch.scalar_values if batch.scalars else np.empty(0, np.float32)
    return b"".join(
        (MAGIC, len(text).to_bytes(4, "little"), text, _packed(batch.values), _packed(scalars))
    )


def decode(data: bytes) -> Batch:
    """Read the binary form. Malformed bytes raise `WireError` and allocate no values.

    The number of layers follows from the length. The caller compares it with the layer table.
    """
    if len(data) < 8 or data[:4] != MAGIC:
        raise WireError("body", f"must start with {MAGIC!r} and a header length")
    header_bytes = int.from_bytes(data[4:8], "little")
    start = 8 + header_bytes
    if not 2 <= header_bytes <= MAX_HEADER_BYTES or start % 8 or start > len(data):
        raise WireError(
            "header",
            f"must be 2 to {MAX_HEADER_BYTES} bytes, end on a multiple of 8 and lie within the "
            f"body of {len(data)} bytes, got {header_bytes}",
        )
    header = json_object(data[8:start], "header")
    if header.get("dtype", "f4") != "f4":
        raise WireError("dtype", f"must be 'f4' or absent, got {shown(header['dtype'])}")
    steps = _steps(header.get("steps"))
    metrics = names(header.get("metrics", []), "metrics")
    scalars = names(header.get("scalars", []), "scalars")
    num_layers = _num_layers(len(data) - start, len(steps), len(metrics), len(scalars))
    floats = np.frombuffer(data, dtype="<f4", offset=start)
    split = len(metrics) * len(steps) * num_layers
    return Batch(
        writer=header.get("writer"),  # type: ignore[arg-type] # checked by Batch
        seq=header.get("seq"),  # type: ignore[arg-type] # the same
        layers=header.get("layers"),  # type: ignore[arg-type] # the same
        steps=steps,
        metrics=metrics,
        values=floats[:split].reshape(len(metrics), len(steps), num_layers),
        scalars=scalars,
        scalar_values=floats[split:].reshape(len(scalars), len(steps)),
        times=_times(header.get("times")),
        skipped=header.get("skipped", 0),
        dropped=header.get("dropped", 0),
        attempt=header.get("attempt"),
    )


def _packed(values: Floats) -> bytes:
    """Return little-endian float32 bytes with every NaN canonical, except `ABSENT`."""
    packed = np.ascontiguousarray(values, dtype="<f4")
    nan = np.isnan(packed)
    if nan.any():
        bits = packed.view("<u4").copy()
        bits[nan & (bits != ABSENT_BITS)] = QUIET_NAN_BITS
        return bits.tobytes()
    return packed.tobytes()


def _num_layers(payload: int, num_steps: int, num_metrics: int, num_scalars: int) -> int:
    """Return the L for which 4*S*(M*L + K) equals ``payload`` in bytes, in Python integers."""
    per_step, rest = divmod(payload, 4 * num_steps)
    columns = per_step - num_scalars
    fits = (
        rest == 0 and columns >= 0 and (columns % num_metrics == 0 if num_metrics else not columns)
    )
    num_layers = columns // num_metrics if num_metrics else 0
    if not fits or num_layers > MAX_LAYERS:
        raise WireError(
            "body",
            f"must hold {num_steps} steps x ({num_metrics} metrics x layers + {num_scalars} "
            f"scalars) float32 values, got {payload} bytes",
        )
    return num_layers


def _steps(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise WireError("steps", f"must be a list of integers, got {shown(value)}")
    _check_steps(tuple(value))
    return tuple(value)


def _check_steps(steps: tuple[int, ...]) -> None:
    if not 1 <= len(steps) <= MAX_STEPS:
        raise WireError("steps", f"must be 1 to {MAX_STEPS} steps, got {len(steps)}")
    before = -1
    for step in steps:
        if whole(step, "steps") <= before:
            raise WireError("steps", f"must increase strictly, got {step} after {before}")
        before = step


def _times(value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise WireError("times", f"must be a list of Unix seconds, got {shown(value)}")
    for time in value:
        # The limit is in the year 2286: later dates overflow in many tools that read them.
        if (
            isinstance(time, bool)
            or not isinstance(time, int | float)
            or not math.isfinite(time)
            or not 0 <= time < 1e10
        ):
            raise WireError("times", f"must be Unix seconds, got {shown(time)}")
    return tuple(float(time) for time in value)
