"""Rules about changes of layers against their own past: jumps, growth, updates, gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from snc_service.detect.batch_columns import BatchColumns
from snc_service.detect.findings import (
    Columns,
    RuleFinding,
    Seen,
    Told,
    count,
    factor,
    largest,
    medians,
    number,
)
from snc_service.detect.trends import Doubles
from snc_service.wire.batch import Floats

LEAST_LAYERS = 4  # with fewer, that all of them grow says nothing
LEAST_SHRINK = 0.1  # of the layer that shrank most; less is not looked at
GROWING = 0.33  # log sigma above its mean of some 200 rows: a layer that still grows
EARLY_ROWS = 50


def sigma_jump(seen: Seen) -> RuleFinding | None:
    """Find the largest change of log sigma, or of the log Frobenius norm, in one step.

    A new top direction shows in the norm at once, and in an estimate of sigma some steps later.
    Over k steps a random walk moves by sqrt k.
    """
    jump, norm_jump = seen.trends.jump, seen.trends.norm_jump
    either: Floats | None = norm_jump if jump is None else jump
    if jump is not None and norm_jump is not None:
        either = np.fmax(jump, norm_jump)
    if either is None or not either.shape[1]:
        return None
    if (seen.gaps > 1).any():
        either = either / np.sqrt(seen.gaps).astype(np.float32)[:, None]

    def tell(row: int, limit: float) -> Told:
        worst = int(np.nanargmax(either[row]))
        layer, value = seen.signals.layers[worst], float(either[row, worst])
        layers = int((either[row] > limit).sum())
        by_sigma = jump is not None and (
            norm_jump is None or not jump[row, worst] < norm_jump[row, worst]
        )
        what = "sigma" if by_sigma else "the Frobenius norm"
        text = f"{what} changed by a factor of {factor(value)} in one step (limit {factor(limit)})"
        return Told(f"{layer}: {text}{count(layers)}", layer, layers, value, limit)

    values = np.fmax.reduce(either, axis=1).astype(np.float64)
    return RuleFinding(values, seen.trends.judged, tell, either)


def sigma_growth(seen: Seen) -> RuleFinding | None:
    """Find the largest log sigma above its own running mean."""
    return largest(
        seen,
        seen.trends.growth,
        lambda value, limit: (
            f"sigma is {factor(value)} times its recent mean (limit {factor(limit)})"
        ),
    )


def sigma_vs_init(seen: Seen) -> RuleFinding | None:
    """Find the largest log sigma above the value it was registered with, of layers that grow.

    A layer may end far above its start: a recurrent weight, a head, one that began small. It slows
    down on the way there; one that a fault drives does not. In the first rows all layers are fast.
    """
    since_start, growth = seen.trends.since_start, seen.trends.long_growth
    if since_start is not None and growth is not None:
        early = (seen.trends.trained < EARLY_ROWS)[:, None]
        since_start = np.where((growth > GROWING) | early, since_start, np.float32(np.nan))
    return largest(
        seen,
        since_start,
        lambda value, limit: (
            f"sigma is {factor(value)} times its value at the start (limit {factor(limit)})"
        ),
    )


def update_ratio(seen: Seen) -> RuleFinding | None:
    """Find the largest update norm over Frobenius norm."""
    return largest(
        seen,
        seen.trends.update_ratio,
        lambda value, limit: (
            f"one step moved the weight by {number(100 * value)} % of its norm "
            f"(limit {number(100 * limit)} %)"
        ),
    )


def grad_vanish(seen: Seen) -> RuleFinding | None:
    """Find gradients that fell in all layers, or are tiny relative to the weight in one layer.

    A layer whose gradient is exactly zero while most others have one is idle: an expert without
    tokens. Where the loss falls, gradients may fall as far.
    The value is the larger of two. One is the natural logarithm of the fall of the layer that fell
    least. The other is how far the smallest ratio of gradient norm to Frobenius norm lies below
    1e-7, as a decimal logarithm.
    """
    drop, ratio = seen.trends.gradient_drop, seen.trends.gradient_ratio
    if drop is None:
        return None
    least = np.fmin.reduce(drop, axis=1, initial=np.nan).astype(np.float64)
    if "fall" in seen.scores:
        least -= seen.scores["fall"]
    tiny = np.full(len(least), -np.inf)
    if ratio is not None:
        smallest = np.fmin.reduce(ratio, axis=1, initial=np.nan)
        is_tiny = smallest < 1e-7
        tiny[is_tiny] = -np.log10(np.maximum(smallest[is_tiny], 1e-30)) - 7
    tell = partial(_tell_vanish, seen.signals, drop, ratio, least, tiny)
    return RuleFinding(np.fmax(least, tiny), seen.trends.judged, tell)


def _tell_vanish(
    signals: BatchColumns,
    drop: Columns,
    ratio: Columns | None,
    least: Doubles,
    tiny: Doubles,
    row: int,
    limit: float,
) -> Told:
    if ratio is not None and not tiny[row] < least[row]:
        worst = int(np.nanargmin(ratio[row]))
        layer, value = signals.layers[worst], float(tiny[row])
        text = f"{layer}: the gradient is {ratio[row, worst]:.2g} of the weight's norm"
        return Told(text, layer, int((ratio[row] < 10 ** -(7 + limit)).sum()), value, limit)
    worst = int(np.nanargmin(drop[row]))
    layer, value = signals.layers[worst], float(least[row])
    layers = int((~np.isnan(drop[row])).sum())
    text = f"the gradients of all layers fell below 1/{factor(value)} of their mean"
    return Told(f"{layer}: {text}{count(layers)}", layer, layers, value, limit)


def coherent_growth(seen: Seen) -> RuleFinding | None:
    """Find growth of all layers: log sigma above its long mean, of the layer that grew least.

    Weight decay with the wrong sign, or a learning rate that only rises, moves every layer by a
    little. In a healthy network at least one layer does not grow; of fewer than four, all may.
    """
    growth = seen.trends.long_growth
    if growth is None or not growth.shape[1]:
        return None
    measured = (~np.isnan(growth)).sum(axis=1)
    least = np.fmin.reduce(growth, axis=1).astype(np.float64)

    least[measured < LEAST_LAYERS] = -np.inf

    def tell(row: int, limit: float) -> Told:
        layers = int((~np.isnan(growth[row])).sum())
        most = int(np.nanargmax(growth[row]))
        value = float(least[row])
        text = (
            f"every sigma is at least {factor(value)} times its mean of some 200 rows "
            f"(limit {factor(limit)})"
        )
        layer = seen.signals.layers[most]
        return Told(f"{layer}: {text}{count(layers)}", layer, layers, value, limit)

    return RuleFinding(least, seen.trends.judged, tell)


def shrink(seen: Seen) -> RuleFinding | None:
    """Find layers that shrink together: log sigma below its long mean, of the median layer.

    Weight decay that is far too strong does this. The loss follows late.
    """
    growth = seen.trends.long_growth
    if growth is None or not growth.shape[1]:
        return None
    values = np.full(len(growth), -np.inf)
    rows = np.flatnonzero(np.fmin.reduce(growth, axis=1) < -LEAST_SHRINK)  # mostly none
    if len(rows):  # the median can only be below -limit where half of the layers are below 0
        below = 2 * (growth[rows] < 0).sum(axis=1) >= (~np.isnan(growth[rows])).sum(axis=1)
        rows = rows[below]
        values[rows] = -medians(growth[rows])

    def tell(row: int, limit: float) -> Told:
        least, value = int(np.nanargmin(growth[row])), float(values[row])
        layers = int((growth[row] < -limit).sum())
        text = (
            f"half of the sigmas fell below 1/{factor(value)} of their mean of some 200 rows "
            f"(limit 1/{factor(limit)})"
        )
        layer = seen.signals.layers[least]
        return Told(f"{layer}: {text}{count(layers)}", layer, layers, value, limit)

    return RuleFinding(values, seen.trends.judged, tell)


def gain_growth(seen: Seen) -> RuleFinding | None:
    """Find the largest growth of the norm of a 1-d parameter above its long mean.

    Rows that measure none are not judged: a batch of such rows alone has no finding at all.
    """
    finding = largest(
        seen,
        seen.trends.vector_growth,
        lambda value, limit: (
            f"the norm is {factor(value)} times its mean of some 200 rows (limit {factor(limit)})"
        ),
    )
    if finding is None:
        return None
    return replace(finding, judged=finding.judged & ~np.isnan(finding.values))


def unchanged(seen: Seen) -> RuleFinding | None:
    """Find weights that have a gradient and do not change by a bit, while most others do.

    The optimizer does not hold them, their rate is zero, or their precision rounds every step away.
    """
    return largest(
        seen,
        seen.trends.still,
        lambda value, limit: (
            f"the weight has not changed in {number(value)} rows, in spite of its gradient"
        ),
    )
