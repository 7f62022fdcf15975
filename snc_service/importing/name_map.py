"""Which names of other tools are norms of layers, and which are the loss and its companions.

An entry is a pattern and a target. In a pattern, ``{layer}`` is the name of a layer, ``*`` any
letters. With ``{layer}`` the target is a metric of layers, without it a scalar, and ``-`` leaves
the series out. Entries of the user come first, the first match counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from snc_service.importing.recording import Recording, SeriesKey
from snc_service.wire import METRIC_NAME, WireError
from snc_service.wire.checks import MAX_LAYER_NAME_BYTES, printable, shown

LEAVE_OUT: Final = "-"
LAYER: Final = "{layer}"
DOTTED: Final = "{dotted}"  # a layer whose name has a dot: `train/grad_norm` is of no layer
MOST_METRICS: Final = 64  # names in one run: what a service takes by default
MOST_SCALARS: Final = 512
MOST_ENTRIES: Final = 1_000

# Norms of layers. Whole families first: each of our own names, before or behind the layer.
SURE: Final = ("sigma", "sigma_upper", "frobenius", "stable_rank")
UNSURE: Final = ("threshold", "scale", "residual", "grad_norm", "update_norm")
LAYERS: Final[tuple[tuple[str, str], ...]] = (
    ("l2_norm/param/{layer}", "frobenius"),  # Composer
    ("l2_norm/grad/{dotted}", "grad_norm"),
    ("l2_norm/update/{dotted}", "update_norm"),
    ("grad_2.0_norm/{layer}", "grad_norm"),  # Lightning
    ("weights_norm/{layer}", "frobenius"),  # Ignite
    ("grads_norm/{layer}", "grad_norm"),
    ("spectral_norm/{layer}", "sigma"),
    ("{layer}/spectral_norm", "sigma"),
    ("weight_norm/{layer}", "frobenius"),
    ("param_norm/{layer}", "frobenius"),
    ("{dotted}/weight_norm", "frobenius"),
    ("{dotted}/param_norm", "frobenius"),
    ("gradient_norm/{dotted}", "grad_norm"),
    ("{dotted}/gradient_norm", "grad_norm"),
    *((f"{name}/{LAYER}", name) for name in SURE),
    *((f"{LAYER}/{name}", name) for name in SURE),
    *((f"{name}/{DOTTED}", name) for name in UNSURE),
    *((f"{DOTTED}/{name}", name) for name in UNSURE),
)
# Scalars that the rules read. The first name that a run has becomes the scalar.
SCALARS: Final[dict[str, tuple[str, ...]]] = {
    "loss": (
        "loss", "train/loss", "train_loss", "training/loss", "training_loss", "train/loss_step",
        "train_loss_step", "loss/train", "Loss/train", "loss/train/total",
        "loss_metrics/global_avg_loss", "lm loss",
    ),
    "grad_norm": (
        "grad_norm", "train/grad_norm", "gradient_norm", "train/gradient_norm", "grad-norm",
        "l2_norm/grad/global", "grad_2.0_norm_total",
    ),
    "lr": (
        "lr", "train/learning_rate", "train/lr", "learning_rate", "learning-rate", "lr-*",
    ),
}  # fmt: skip


class NameEntry(NamedTuple):
    """One pattern and its target."""

    pattern: re.Pattern[str]
    target: str
    of_layers: bool


@dataclass(frozen=True)
class MappedNames:
    """A recording's series under the names of this project, and what was left out for it."""

    series: dict[SeriesKey, SeriesKey]  # of the source -> metric and layer
    renamed: dict[str, str]  # scalar -> the source's name, where they differ
    notes: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers in the order in which the source names them."""
        return tuple(dict.fromkeys(k.layer for k in self.series.values() if k.layer is not None))

    def names(self, *, of_layers: bool) -> tuple[str, ...]:
        """Return the metrics of layers, or the scalars."""
        found = self.series.values()
        return tuple(dict.fromkeys(k.name for k in found if (k.layer is not None) == of_layers))


def entries(texts: Iterable[str]) -> tuple[NameEntry, ...]:
    """Read entries of the form ``PATTERN=TARGET``. Raises `WireError`."""
    found = [_entry(*_divided(text)) for text in texts]
    if len(found) > MOST_ENTRIES:
        raise WireError("map", f"must have at most {MOST_ENTRIES} entries, got {len(found)}")
    return tuple(found)


def _divided(text: str) -> tuple[str, str]:
    pattern, equals, target = text.rpartition("=")
    if not equals or not pattern:
        raise WireError("map", f"must be PATTERN=TARGET, got {shown(text)}")
    if pattern.count(LAYER) > 1 or pattern.count("*") > 8:
        raise WireError("map", f"must have {LAYER} once and * 8 times at most, got {shown(text)}")
    if target != LEAVE_OUT and not METRIC_NAME.fullmatch(target):
        raise WireError(
            "map", f"must have a target like grad_norm or loss, or {LEAVE_OUT}, got {shown(target)}"
        )
    return pattern, target


def _entry(pattern: str, target: str) -> NameEntry:
    parts = re.split(r"(\{layer\}|\{dotted\}|\*)", pattern)
    forms = {LAYER: "(?P<layer>.+)", DOTTED: r"(?P<layer>.+\..+)", "*": ".*"}
    text = "".join(forms.get(part) or re.escape(part) for part in parts)
    return NameEntry(re.compile(text), target, LAYER in pattern or DOTTED in pattern)


SHIPPED: Final = tuple(_entry(pattern, target) for pattern, target in LAYERS)


def mapped(recording: Recording, own: Sequence[NameEntry] = ()) -> MappedNames:
    """Return the names of a recording's series in this project.

    A scalar that no entry knows keeps its name, in the form of our names. Names that cannot be
    stored, and scalars beyond `MOST_SCALARS`, are left out and told.
    """
    return _Mapping(recording, own).result()


class _Mapping:
    def __init__(self, recording: Recording, own: Sequence[NameEntry]) -> None:
        self._recording = recording
        self._own = own
        self._targets: dict[SeriesKey, SeriesKey] = {}
        self._taken: dict[tuple[str, str | None], str] = {}  # target -> the source's name
        self._renamed: dict[str, str] = {}
        self._left: dict[str, list[str]] = {}
        self._num = {True: dict[str, None](), False: dict[str, None]()}  # names, by of_layers

    def result(self) -> MappedNames:
        shipped = () if self._recording.exact else SHIPPED
        rest: list[SeriesKey] = []
        for key in self._recording.series:
            if key.layer is not None:
                self._put(key, _form_of(key.name), key.layer)
            elif not self._matched(key, self._own) and not self._matched(key, shipped):
                rest.append(key)
        if not self._recording.exact:
            for target in SCALARS:
                self._known(target, rest)
        for key in rest:
            if key not in self._targets:
                self._put(key, _form_of(key.name), None)
        notes = tuple(_told(reason, names) for reason, names in self._left.items())
        return MappedNames(self._targets, self._renamed, notes)

    def _matched(self, key: SeriesKey, entries: Sequence[NameEntry]) -> bool:
        for entry in entries:
            match = entry.pattern.fullmatch(key.name)
            if match is None:
                continue
            if entry.target != LEAVE_OUT:
                self._put(key, entry.target, match["layer"] if entry.of_layers else None)
            return True
        return False

    def _known(self, target: str, rest: Sequence[SeriesKey]) -> None:
        """Give a scalar that rules read to the first name that stands for it."""
        if (target, None) in self._taken:
            return
        for alias in SCALARS[target]:
            pattern = _entry(alias, target).pattern
            found = sorted(k for k in rest if pattern.fullmatch(k.name))
            if found:
                for key in found:
                    if key.name == found[0].name:
                        self._put(key, target, None)
                return

    def _put(self, key: SeriesKey, name: str, layer: str | None) -> None:
        source = key.name
        if layer is not None:
            try:
                printable(layer, "layer", max_bytes=MAX_LAYER_NAME_BYTES)
            except WireError:
                self._leave("series of layers whose name cannot be stored", key.name)
                return
        elif self._taken.get((name, None), source) != source:
            name = self._other(name, source)
        if self._taken.setdefault((name, layer), source) != source:
            self._leave("series that mean the same as another", key.name)
            return
        of_layers = layer is not None
        most = MOST_METRICS if of_layers else MOST_SCALARS
        if name not in self._num[of_layers] and len(self._num[of_layers]) >= most:
            kind = "metrics" if of_layers else "scalars"
            self._leave(f"series beyond {most} {kind}: choose with --map", key.name)
            return
        self._num[of_layers][name] = None
        self._targets[key] = SeriesKey(key.attempt, name, layer)
        if layer is None and name != source:
            self._renamed[name] = source

    def _other(self, name: str, source: str) -> str:
        """Return a name like this one that no other source has."""
        for number in range(2, MOST_SCALARS + 2):
            other = f"{name[:58]}_{number}"
            if self._taken.get((other, None), source) == source:
                return other
        return name

    def _leave(self, reason: str, name: str) -> None:
        self._left.setdefault(reason, []).append(name)


def _told(reason: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 4 else ""
    return f"left out {len(names)} {reason}: {', '.join(name[:80] for name in names[:4])}{more}"


def _form_of(name: str) -> str:
    """Return a name in the form of our names: a to z, digits and underscores."""
    if METRIC_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not plain[:1].isalpha():
        plain = f"x_{plain}"
    return plain[:63].rstrip("_")
