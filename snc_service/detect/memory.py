"""What detection remembers of a run between two batches, and its bytes in the store.

The bytes are one line of JSON (the run) and, after it, the layers' columns in float32: at most 36
bytes a layer, fewer where a signal is not reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

VERSION: Final = 2
REST_ROWS: Final = 50  # quiet rows after which a rule may speak again
NEVER: Final = 1_000_000_000  # quiet for ever: the rule has not fired yet
MOST_LAYERS: Final = 65_536  # of one run; past that, layers that no longer come are forgotten

Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
Keys: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Fired:
    """The rows in which a rule fires, and those of them at which an event starts."""

    rows: list[int] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)

    def at(self, rows: npt.NDArray[np.intp]) -> Fired:
        """Return the same with rows numbered as in ``rows``."""
        return Fired(*([int(rows[i]) for i in part] for part in (self.rows, self.edges)))


@dataclass
class Firing:
    """One rule's hysteresis: rows in a row above its limit, and rows since it last fired."""

    streak: int = 0
    quiet: int = NEVER

    def advance(self, above: npt.NDArray[np.bool_], hold: Counts, rest: Counts) -> Fired:
        """Return in which rows of ``above`` [S] the rule fires, and remember the rest.

        A rule fires from the ``hold``-th row in a row above its limit; it starts an event if more
        than ``rest`` rows went by in which it did not fire.
        """
        if not above.any():
            if len(above):
                self.streak, self.quiet = 0, min(NEVER, self.quiet + len(above))
            return Fired()
        fired = Fired()
        for row, is_above in enumerate(above.tolist()):
            self.streak = self.streak + 1 if is_above else 0
            if is_above and self.streak >= hold[row]:
                fired.rows.append(row)
                if self.quiet > rest[row]:
                    fired.edges.append(row)
                self.quiet = 0
            else:
                self.quiet = min(NEVER, self.quiet + 1)
        return fired


@dataclass
class Deviation:
    """Running mean and mean absolute deviation of one scalar, robust to what it looks for."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def score(self, value: float, floor: float) -> float:
        """Return how many deviations ``value`` lies above the mean, then take it in.

        1.2533 makes a mean absolute deviation a standard one, for a normal distribution. After ten
        values a single one moves the mean by 5 deviations at most.
        """
        score = (value - self.mean) / max(1.2533 * self.deviation, floor)
        self.count += 1
        share = max(0.03, 1.0 / self.count)
        rest = value - self.mean
        if self.count > 10:
            rest = min(max(rest, -5.0 * self.deviation), 5.0 * self.deviation)
        self.mean += share * rest
        self.deviation += share * (abs(rest) - self.deviation)
        return score


# One column per layer, NaN where nothing is known yet: logarithms of sigma at registration, at the
# newest row (after the action) and of its mean; the floors of layers born at zero, for sigma and
# for the Frobenius norm; the mean of log gradient norm; rows since the layer was last measured.
COLUMNS: Final = ("start", "newest", "mean", "floor", "norm_floor", "gradient", "skipped")


@dataclass
class Memory:
    """The state of a run: a pure function of its rows, whatever batches they came in."""

    step: int | None = None  # of the newest row
    gap: int | None = None  # steps between the two newest rows
    trained: int = 0  # training rows so far
    largest_lr: float = 0.0
    loss: Deviation = field(default_factory=Deviation)
    gradient: Deviation = field(default_factory=Deviation)
    firing: dict[str, Firing] = field(default_factory=dict)
    keys: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    columns: dict[str, Floats] = field(
        default_factory=lambda: {name: np.empty(0, np.float32) for name in COLUMNS}
    )

    @classmethod
    def load(cls, state: bytes | None) -> Memory:
        """Read a state. One of another version is not understood: detection starts anew."""
        line, _, data = (state or b"{}").partition(b"\n")
        values: dict[str, Any] = json.loads(line)
        if values.get("version") != VERSION:
            return cls()
        size = values["layers"]
        keys = np.frombuffer(data[: 8 * size], "<u8").astype(np.uint64)
        stored = np.frombuffer(data[8 * size :], "<f4").reshape(len(values["columns"]), size)
        columns = {name: np.full(size, np.nan, np.float32) for name in COLUMNS}
        for name, column in zip(values["columns"], stored, strict=True):
            columns[name] = column.astype(np.float32)
        return cls(
            step=values["step"],
            gap=values["gap"],
            trained=values["trained"],
            largest_lr=values["largest_lr"],
            loss=Deviation(*values["loss"]),
            gradient=Deviation(*values["gradient"]),
            firing={rule: Firing(*pair) for rule, pair in values["firing"].items()},
            keys=keys,
            columns=columns,
        )

    def dump(self) -> bytes:
        """Return the bytes; equal memories have equal bytes."""
        known = [name for name in COLUMNS if not np.isnan(self.columns[name]).all()]
        values = {
            "version": VERSION,
            "step": self.step,
            "gap": self.gap,
            "trained": self.trained,
            "largest_lr": self.largest_lr,
            "loss": [self.loss.mean, self.loss.deviation, self.loss.count],
            "gradient": [self.gradient.mean, self.gradient.deviation, self.gradient.count],
            "firing": {rule: [it.streak, it.quiet] for rule, it in self.firing.items()},
            "layers": len(self.keys) if known else 0,
            "columns": known,
        }
        line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
        if not known:
            return line
        columns = [self.columns[name].astype("<f4").tobytes() for name in known]
        return b"".join((line, self.keys.astype("<u8").tobytes(), *columns))

    def of_rule(self, rule: str) -> Firing:
        """Return a rule's hysteresis, to be moved."""
        return self.firing.setdefault(rule, Firing())

    def restart(self) -> None:
        """Begin a new attempt: what layers were at the start stays, all else is forgotten."""
        fresh = Memory(keys=self.keys, columns=self.columns)
        for name in ("mean", "gradient", "skipped"):
            fresh.columns[name].fill(np.nan)
        fresh.columns["newest"] = fresh.columns["start"].copy()
        self.__dict__.update(fresh.__dict__)

    def gaps(self, steps: tuple[int, ...]) -> tuple[Counts, Counts]:
        """Return how many steps lie before each row, and how far apart rows usually are, [S] >= 1.

        Usual is the smaller of the last two gaps, so that one lost batch does not make rows that
        are a step apart look sparse. Rows of another writer may go back: they say nothing of gaps.
        """
        found, usual = [], []
        for step in steps:
            gap = None if self.step is None else step - self.step
            before, self.gap = self.gap, gap if gap and gap > 0 else self.gap
            found.append(self.gap or 1)
            usual.append(min(before or self.gap or 1, self.gap or 1))
            self.step = step
        return np.array(found, np.int64), np.array(usual, np.int64)

    def places(self, layers: tuple[str, ...]) -> npt.NDArray[np.intp]:
        """Return where each layer stands in the columns [L]; new layers get a place."""
        keys = _keys(layers)
        if np.array_equal(keys, self.keys):
            return np.arange(len(keys))
        fresh = keys[~np.isin(keys, self.keys)]
        if len(self.keys) + len(fresh) > MOST_LAYERS:
            self._keep(np.isin(self.keys, keys))
        self.keys = np.concatenate((self.keys, fresh))
        unknown = np.full(len(fresh), np.nan, np.float32)
        self.columns = {n: np.concatenate((c, unknown)) for n, c in self.columns.items()}
        order = np.argsort(self.keys)
        return order[np.searchsorted(self.keys, keys, sorter=order)]

    def _keep(self, mask: npt.NDArray[np.bool_]) -> None:
        self.keys = self.keys[mask]
        self.columns = {name: column[mask] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Quiet:
    """How long a run's rules have not fired, in steps."""

    step: int | None  # of the newest row
    seen: int  # steps that the run's newest attempt has shown so far
    rules: Mapping[str, int]  # steps since each rule last fired, as far as it was ever judged


def quiet_steps(state: bytes | None) -> Quiet:
    """Return what a state says of quiet rules, without reading its layers."""
    line, _, _ = (state or b"{}").partition(b"\n")
    values: dict[str, Any] = json.loads(line)
    if values.get("version") != VERSION:
        return Quiet(None, 0, {})
    gap = values["gap"] or 1
    rules = {rule: quiet * gap for rule, (_, quiet) in values["firing"].items()}
    return Quiet(values["step"], values["trained"] * gap, rules)


@lru_cache(maxsize=8)  # a pure function of the names, which come again with every batch
def _keys(layers: tuple[str, ...]) -> Keys:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in layers)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
