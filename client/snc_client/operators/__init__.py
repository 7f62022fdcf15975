"""Operators: the linear maps of weights, multiplied with blocks of vectors.

Every operator has ``shape`` (m, n), ``matmul`` (n, b) -> (m, b), ``rmatmul`` (m, b) -> (n, b), both
in float32 for any dtype of the weight, ``amax``, a 0-d float32 on the weight's device, whose
exponent gives the estimator its scale, and ``tensors``, which its products read: a recorded graph
is valid while these keep their addresses. Nothing here waits for the device, draws a random number
or records a gradient.
"""

from __future__ import annotations

from typing import TypeAlias

from snc_client.operators.convolution import Adjoint, Convolution, Geometry
from snc_client.operators.dense import BlockDiagonal, LowRank, Matrix
from snc_client.operators.entries import row_norms
from snc_client.operators.gains_and_rows import Gain, Rows

__all__ = [
    "Adjoint",
    "BlockDiagonal",
    "Convolution",
    "Gain",
    "Geometry",
    "LowRank",
    "Matrix",
    "Operator",
    "Rows",
    "row_norms",
]

Operator: TypeAlias = Matrix | BlockDiagonal | LowRank | Convolution | Adjoint | Gain | Rows
