"""Rules about slow changes: layers that grow or shrink together, gains, and weights that stand."""

from __future__ import annotations

from typing import Final

import numpy as np

from snc_service.detect.findings import RuleFinding, Seen, Told, count, factor, largest, number

LEAST_LAYERS: Final = 4  # with fewer, that all of them grow says nothing


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
    rows = np.flatnonzero(~np.isnan(growth).all(axis=1))
    values[rows] = -np.nanmedian(growth[rows], axis=1)

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
    """Find the largest growth of the norm of a 1-d parameter above its long mean."""
    return largest(
        seen,
        seen.trends.vector_growth,
        lambda value, limit: (
            f"the norm is {factor(value)} times its mean of some 200 rows (limit {factor(limit)})"
        ),
    )


def unchanged(seen: Seen) -> RuleFinding | None:
    """Find weights that have a gradient and do not change by a bit, while most others do.

    The optimizer does not hold them, their rate is zero, or their precision rounds every step away.
    """
    return largest(
        seen,
        seen.trends.still,
        lambda value, limit: f"the weight has not changed in {number(value)} rows, in spite of its "
        "gradient",
    )
