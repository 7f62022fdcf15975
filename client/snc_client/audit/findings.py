"""Audit the tensors of a file one at a time: each is measured, or skipped with a reason."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snc_client.audit.formats.stored import Unreadable, Weights
from snc_client.audit.limits import require_matched, threshold_of
from snc_client.audit.matrices import Part, parts, quantised, reason
from snc_client.audit.weigh import Weighed, weigh
from snc_service.wire import Policy

Verdict: TypeAlias = Literal["within", "breach", "unproven"]
Key: TypeAlias = tuple[bytes, int, int, str, float | None]


@dataclass(frozen=True)
class Finding:
    """One measured matrix. ``names`` are all names under which the file holds these numbers."""

    part: Part
    dtype: str
    weighed: Weighed
    threshold: float | None
    names: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """Return sigma / threshold; NaN for a weight that is not finite."""
        return None if self.threshold is None else self.weighed.sigma / self.threshold

    @property
    def verdict(self) -> Verdict | None:
        """Return whether the threshold holds, None where there is none.

        ``within``: sigma_upper, or sigma if nothing was certified, is at most the threshold.
        ``unproven``: sigma is, sigma_upper is not. A weight that is not finite is a breach.
        """
        if self.threshold is None:
            return None
        if not self.weighed.sigma <= self.threshold:
            return "breach"
        return "unproven" if self.weighed.sigma_upper > self.threshold else "within"


@dataclass(frozen=True)
class Skipped:
    """A tensor that is not measured, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """The whole audit, in the order of the file."""

    layers: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]

    def count(self, verdict: Verdict) -> int:
        """Return how many matrices have this verdict."""
        return sum(layer.verdict == verdict for layer in self.layers)

    @property
    def holds(self) -> bool:
        """Return whether no matrix exceeds its threshold, or might."""
        return not self.count("breach") and not self.count("unproven")


def audit(
    weights: Weights,
    policy: Policy,
    *,
    proof: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Measure every matrix of ``weights``, holding one at a time.

    ``progress`` is called with the number of entries done and in all. Raises `Unreadable` if a
    pattern of the policy matches nothing, or if the file changes meanwhile.
    """
    beside = quantised(weights.tensors)
    reasons = [(tensor, reason(tensor, beside)) for tensor in weights.tensors]
    skipped = [Skipped(t.name, t.shape, t.dtype, why) for t, why in reasons if why]
    whole = [(tensor, parts(tensor)) for tensor, why in reasons if not why]
    every = [part for _, found in whole for part in found]
    if policy.entries and not every:
        raise Unreadable("a threshold was given, but the file holds no weight that can be measured")
    require_matched(policy, every)
    total = sum(part.rows * part.columns for part in every)
    done = 0
    found: dict[Key, Finding] = {}
    for tensor, part in ((tensor, part) for tensor, inside in whole for part in inside):
        progress(done, total)
        threshold = threshold_of(policy, part)
        matrix = tensor.read(part.first, part.last).reshape(part.rows, part.columns)
        key = (_digest(matrix), part.rows, part.columns, tensor.dtype, threshold)
        if key in found:
            found[key] = replace(found[key], names=(*found[key].names, part.name))
        else:
            weighed = weigh(matrix, threshold=threshold, proof=proof)
            found[key] = Finding(part, tensor.dtype, weighed, threshold, (part.name,))
        done += part.rows * part.columns
    progress(total, total)
    return Findings(tuple(found.values()), tuple(skipped))


def _digest(matrix: Tensor) -> bytes:
    """Return a hash of the numbers: a tied weight that a file holds twice is measured once."""
    raw = matrix.contiguous().view(torch.uint8)
    return hashlib.blake2b(raw.numpy().data, digest_size=32).digest()


def ordered(layers: Iterable[Finding], by: str | None) -> list[Finding]:
    """Return findings by a column (``-sigma``: descending), None: as in the file.

    Values that are not finite come first when descending; a missing value comes last either way.
    """
    listed = list(layers)
    if by is None:
        return listed
    key = COLUMNS[by.removeprefix("-")]
    valued = [(value, layer) for layer in listed if (value := key(layer)) is not None]
    rest = [layer for layer in listed if key(layer) is None]
    descending = by.startswith("-")

    def place(pair: tuple[float | str, Finding]) -> tuple[bool, float | str]:
        broken = isinstance(pair[0], float) and math.isnan(pair[0])
        return (True, math.inf) if broken else (False, pair[0])

    return [layer for _, layer in sorted(valued, key=place, reverse=descending)] + rest


COLUMNS: dict[str, Callable[[Finding], float | str | None]] = {
    "name": lambda x: x.part.name,
    "sigma": lambda x: x.weighed.sigma,
    "sigma_upper": lambda x: x.weighed.sigma_upper,
    "stable_rank": lambda x: x.weighed.stable_rank,
    "frobenius": lambda x: x.weighed.frobenius,
    "ratio": lambda x: x.ratio,
}
