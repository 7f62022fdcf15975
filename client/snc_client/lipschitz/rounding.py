"""Float64 arithmetic on bounds >= 0, rounded up: no result is below the exact one."""

from __future__ import annotations

import math
from collections.abc import Iterable


def up(x: float) -> float:
    """Return the next float above x: one operation in round-to-nearest errs by less."""
    return x if x == 0 or math.isinf(x) else math.nextafter(x, math.inf)


def times(*factors: float) -> float:
    """Return a bound of the product: inf where a factor is, also beside a zero."""
    if math.inf in factors:
        return math.inf
    if 0.0 in factors:
        return 0.0
    product = 1.0
    for factor in factors:
        product = up(product * factor)
    return max(product, math.ulp(0.0))  # a product that underflows is not zero


def plus(terms: Iterable[float]) -> float:
    """Return a bound of the sum."""
    total = 0.0
    for term in terms:
        total = up(total + term)
    return total


def root(x: float) -> float:
    """Return a bound of the square root."""
    return up(math.sqrt(x))


def root_sum(terms: Iterable[float]) -> float:
    """Return a bound of the root of the sum of the squares."""
    values = [term for term in terms if term]
    if len(values) < 2:
        return values[0] if values else 0.0
    largest = max(values)
    if math.isinf(largest):
        return largest
    return times(largest, root(plus(times(x / largest, x / largest, 1 + 2**-50) for x in values)))


def over(x: float, y: float) -> float:
    """Return a bound of x / y for y > 0."""
    return up(x / y)
