"""The detection state of a run between two batches, and its bytes in the store.

The bytes are one line of JSON for the run, then the columns of the layers in float32: 44 bytes a
layer, fewer where a metric is not reported, 12 more once layers have left their band, 12 more where
there are 1-d parameters or weights that stand still, and 4 more while norms are measured by turns.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from snc_service.detect.running import (
    Counts,
    Deviation,
    Firing,
    LossFall,
    Regain,
    Rise,
    SkippedShare,
)
from snc_service.wire.batch import Floats
from snc_service.wire.rule_settings import SHIPPED

VERSION: Final = 4
READABLE: Final = (2, 3, 4)  # fields that older versions lack start with the next row
MOST_HASHED: Final = 4  # layer tables of one run whose names stay hashed: ranks that differ
HASHED_BYTES: Final = 100  # of each of their layers, with its name
MOST_LAYERS: Final = 65_536  # of one run; beyond it, layers that are no longer reported are dropped

# A pulse: its version, step, gap and training rows (-1: none), and the quiet rows of each rule.
_PULSE: Final = struct.Struct(f"<B3q{len(SHIPPED)}I")
_PULSE_VERSION: Final = 1  # never that of "{"
_UNJUDGED: Final = 2**32 - 1

Keys: TypeAlias = npt.NDArray[np.uint64]


# One column per layer, NaN where there is no value yet.
COLUMNS: Final = (
    "start",  # log sigma at registration
    "newest",  # log sigma of the newest row, after the action
    "mean",  # of log sigma
    "long_mean",  # the same over more rows
    "floor",  # added to sigma of layers born at zero
    "newest_norm",  # log Frobenius norm of the newest row
    "norm_floor",  # added to the Frobenius norm of layers born at zero
    "gradient",  # mean of log gradient norm
    "skipped",  # rows since the layer was last measured
    "left_after",  # steps from the onset to where the layer left its band
    "left_by",  # multiple of its limit at that step
    "left_rule",  # number of that limit's rule: see `onset`
    "vector_mean",  # of the log norm of a layer without sigma, over about 200 rows
    "vector_floor",  # added to that norm
    "norm_skipped",  # 1: the newest judged row had no norm of the layer
    "still",  # rows in which the weight did not change although it had a gradient
)

# Columns that one array holds while the rows are calm: see `calm`. The others are empty then,
# or are not read for such rows.
KEPT_TOGETHER: Final = (
    "start", "floor", "norm_floor", "newest", "mean", "long_mean", "newest_norm", "gradient",
)  # fmt: skip
# Empty while every layer is measured and moves.
_NOT_CALM: Final = ("skipped", "norm_skipped", "still")


@dataclass
class Memory:
    """The state of a run: a pure function of its rows, whatever their batches."""

    step: int | None = None  # of the newest row
    gap: int | None = None  # steps between the two newest rows
    trained: int = 0  # training rows so far
    largest_lr: float = 0.0
    loss: Deviation = field(default_factory=Deviation)
    gradient: Deviation = field(default_factory=Deviation)
    rise: Rise = field(default_factory=Rise)
    regain: Regain = field(default_factory=Regain)
    fall: LossFall = field(default_factory=LossFall)
    moving: bool = False  # the job has said that the target of its loss moves
    skipped_in_row: int = 0  # rows whose weights a loss scaler left untouched
    skips: SkippedShare = field(default_factory=SkippedShare)
    annotated: list[int] = field(default_factory=list)  # ids of annotations that have taken effect
    begun: int = 0  # training rows before the newest restart
    onset: int | None = None  # the first step at which a layer left its band
    onset_newest: int | None = None  # the newest step at which a layer was outside
    firing: dict[str, Firing] = field(default_factory=dict)
    keys: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    columns: dict[str, Floats] = field(
        default_factory=lambda: {name: np.empty(0, np.float32) for name in COLUMNS}
    )

    known: tuple[str, ...] | None = None  # the layers that the columns are of, where that is known
    together: Floats | None = None  # of which the columns `KEPT_TOGETHER` are rows; None: of none
    complete: frozenset[str] = frozenset()  # those of them that have a value for every layer
    # Of other layer tables, the one used last at the end. Kept by run: none costs another its own.
    hashed: dict[tuple[str, ...], Keys] = field(default_factory=dict)

    @classmethod
    def load(cls, state: bytes | None) -> Memory:
        """Read a state. For a state of an unknown version, detection starts anew."""
        line, _, data = (state or b"{}").partition(b"\n")
        values: dict[str, Any] = json.loads(line)
        if values.get("version") not in READABLE:
            return cls()
        size = values["layers"]
        keys = np.frombuffer(data[: 8 * size], "<u8").astype(np.uint64)
        stored = np.frombuffer(data[8 * size :], "<f4").reshape(len(values["columns"]), size)
        known = dict(zip(values["columns"], stored, strict=True))
        columns = {
            name: known[name].astype(np.float32)
            if name in known
            else np.full(size, np.nan, np.float32)
            for name in COLUMNS
        }
        if values["version"] < 4:  # such a state took sigma and norm for measured together
            skipped = np.where(columns["skipped"] > 0, 1, np.nan)
            columns["norm_skipped"] = skipped.astype(np.float32)
        return cls(
            step=values["step"],
            gap=values["gap"],
            trained=values["trained"],
            largest_lr=values["largest_lr"],
            loss=Deviation(*values["loss"]),
            gradient=Deviation(*values["gradient"]),
            rise=Rise(*values.get("rise", ())),
            regain=Regain(*values.get("regain", ())),
            fall=LossFall(*values.get("fall", ())),
            moving=values.get("moving", False),
            skipped_in_row=values.get("skipped_in_row", 0),
            skips=SkippedShare(*values.get("skips", ())),
            annotated=values.get("annotated", []),
            begun=values.get("begun", 0),
            onset=values.get("onset"),
            onset_newest=values.get("onset_newest"),
            firing={rule: Firing(*pair) for rule, pair in values["firing"].items()},
            keys=keys,
            columns=columns,
        )

    def dump(self) -> bytes:
        """Return the bytes; equal states have equal bytes."""
        table = np.stack([self.columns[name] for name in COLUMNS]).astype("<f4", copy=False)
        is_known = ~np.isnan(table).all(axis=1)
        known = [name for name, is_one in zip(COLUMNS, is_known.tolist(), strict=True) if is_one]
        values = {
            "version": VERSION,
            "step": self.step,
            "gap": self.gap,
            "trained": self.trained,
            "largest_lr": self.largest_lr,
            "loss": [*vars(self.loss).values()],
            "gradient": [*vars(self.gradient).values()],
            "rise": [*vars(self.rise).values()],
            "regain": [*vars(self.regain).values()],
            "fall": [*vars(self.fall).values()],
            "annotated": sorted(self.annotated),
            "begun": self.begun,
            "onset": self.onset,
            "onset_newest": self.onset_newest,
            "firing": {rule: [it.streak, it.quiet] for rule, it in sorted(self.firing.items())},
            "layers": len(self.keys),
            "columns": known,
        }
        if self.moving:
            values["moving"] = True
        if self.skipped_in_row:
            values["skipped_in_row"] = self.skipped_in_row
        if self.skips.steps:  # also of a job that has counted no skip so far
            values["skips"] = [*vars(self.skips).values()]
        line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
        return b"".join((line, self.keys.astype("<u8").tobytes(), table[is_known].tobytes()))

    def pulse(self) -> bytes:
        """Return the part that `quiet_steps` needs, in a few bytes."""
        found = [self.firing.get(rule) for rule in SHIPPED]
        quiet = [_UNJUDGED if each is None else each.quiet for each in found]
        step, gap = (-1 if each is None else each for each in (self.step, self.gap))
        return _PULSE.pack(_PULSE_VERSION, step, gap, self.trained, *quiet)

    @property
    def num_bytes(self) -> int:
        """Return the size in memory of what grows with the layers."""
        columns = 4 * len(COLUMNS) * len(self.keys)  # each is float32 of all layers
        return self.keys.nbytes + columns + sum(map(len, self.hashed)) * HASHED_BYTES

    def of_rule(self, rule: str) -> Firing:
        """Return the hysteresis of a rule, to be advanced in place."""
        found = self.firing.get(rule)
        if found is None:
            found = self.firing[rule] = Firing()
        return found

    def forget(self, scalar: str) -> None:
        """Restart the running statistics of a scalar."""
        if scalar == "loss":
            self.loss, self.rise = Deviation(), Rise()
            self.regain, self.fall = Regain(), LossFall()
        elif scalar == "grad_norm":
            self.gradient = Deviation()

    def restart(self) -> None:
        """Begin a new attempt: keep the registered values of the layers and drop the rest."""
        # A job that goes back in its steps counts on what it skipped.
        fresh = Memory(
            keys=self.keys,
            columns=self.columns,
            moving=self.moving,
            skips=self.skips,
            hashed=self.hashed,
        )
        for name in set(COLUMNS) - {"start", "floor", "norm_floor", "vector_floor"}:
            fresh.columns[name].fill(np.nan)
        fresh.columns["newest"] = fresh.columns["start"].copy()
        self.__dict__.update(fresh.__dict__)

    def gaps(self, steps: tuple[int, ...]) -> tuple[Counts, Counts]:
        """Return the steps between each row and the row before, and the usual gap, [S] >= 1.

        The usual gap is the smaller of the last two, so one lost batch does not make dense rows
        look sparse. Rows of another writer may go back in steps; they do not change the gap.
        """
        found, usual = zip(*map(self.advance_step, steps), strict=True)
        return np.array(found, np.int64), np.array(usual, np.int64)

    def advance_step(self, step: int) -> tuple[int, int]:
        """Return `gaps` of one row."""
        gap = None if self.step is None else step - self.step
        before, self.gap = self.gap, gap if gap and gap > 0 else self.gap
        self.step = step
        return self.gap or 1, min(before or self.gap or 1, self.gap or 1)

    def keep_together(self) -> frozenset[str]:
        """Let one array hold the columns `KEPT_TOGETHER`; return those without a gap.

        None has no gap as long as layers are in turns or stand still.
        """
        if self.together is None:
            self.together = np.stack([self.columns[name] for name in KEPT_TOGETHER])
            self.columns.update(zip(KEPT_TOGETHER, self.together, strict=True))
            whole = np.flatnonzero(~np.isnan(self.together).any(axis=1)).tolist()
            is_calm = all(np.isnan(self.columns[name]).all() for name in _NOT_CALM)
            self.complete = frozenset(KEPT_TOGETHER[each] for each in whole if is_calm)
        return self.complete

    def set_apart(self) -> None:
        """Let each column be an array of its own again."""
        if self.together is not None:
            self.columns.update((name, self.columns[name].copy()) for name in KEPT_TOGETHER)
            self.together = None

    def covers(self, layers: tuple[str, ...]) -> bool:
        """Return whether the columns are those of ``layers`` in their order, as in most batches."""
        if layers is not self.known:
            self.known = layers if np.array_equal(self._keys(layers), self.keys) else None
        return self.known is not None

    def places(self, layers: tuple[str, ...]) -> npt.NDArray[np.intp]:
        """Return the index of each layer in the columns [L]; new layers are added."""
        keys = self._keys(layers)
        if np.array_equal(keys, self.keys):
            return np.arange(len(keys))
        fresh = keys[~np.isin(keys, self.keys)]
        if len(self.keys) + len(fresh) > MOST_LAYERS:
            self._keep(np.isin(self.keys, keys))
        self.keys, self.known = np.concatenate((self.keys, fresh)), None
        unknown = np.full(len(fresh), np.nan, np.float32)
        self.columns = {n: np.concatenate((c, unknown)) for n, c in self.columns.items()}
        order = np.argsort(self.keys)
        return order[np.searchsorted(self.keys, keys, sorter=order)]

    def _keys(self, layers: tuple[str, ...]) -> Keys:
        keys = self.hashed.pop(layers, None)
        keys = _hashes(layers) if keys is None else keys
        if not np.array_equal(keys, self.keys):  # else `known` is enough
            self.hashed[layers] = keys
            while len(self.hashed) > MOST_HASHED:
                del self.hashed[next(iter(self.hashed))]
        return keys

    def _keep(self, mask: npt.NDArray[np.bool_]) -> None:
        self.keys, self.known = self.keys[mask], None
        self.columns = {name: column[mask] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Quiet:
    """The steps since the rules of a run last fired."""

    step: int | None  # of the newest row
    seen: int  # steps covered by the run's newest attempt so far
    rules: Mapping[str, int]  # steps since each rule last fired, for rules that were judged


def quiet_steps(pulse: bytes | None) -> Quiet:
    """Return the quiet steps from a pulse, or from the line of a state of an earlier release."""
    if pulse is None or pulse.startswith(b"{"):
        return _quiet_of_line(pulse or b"{}")
    if len(pulse) != _PULSE.size or pulse[0] != _PULSE_VERSION:  # of another release
        return Quiet(None, 0, {})
    _, step, gap, trained, *rows = _PULSE.unpack(pulse)
    gap = max(gap, 1)
    rules = {
        rule: quiet * gap for rule, quiet in zip(SHIPPED, rows, strict=True) if quiet != _UNJUDGED
    }
    return Quiet(None if step < 0 else step, trained * gap, rules)


def _quiet_of_line(state: bytes) -> Quiet:
    line, _, _ = state.partition(b"\n")
    values: dict[str, Any] = json.loads(line)
    if values.get("version") not in READABLE:
        return Quiet(None, 0, {})
    gap = values["gap"] or 1
    rules = {rule: quiet * gap for rule, (_, quiet) in values["firing"].items()}
    return Quiet(values["step"], values["trained"] * gap, rules)


def row_gap(state: bytes | None) -> int:
    """Return the steps between the two newest rows, 1 before there are two."""
    line, _, _ = (state or b"{}").partition(b"\n")
    return int(json.loads(line).get("gap") or 1)


def _hashes(layers: tuple[str, ...]) -> Keys:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in layers)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
