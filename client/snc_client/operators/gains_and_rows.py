"""Weights that are not used as a matrix: gains of normalisations, rows of tables."""

from __future__ import annotations

from torch import Tensor

from snc_client.operators.entries import largest, plain, row_norms, upper_of


class Gain:
    """A diagonal matrix, represented by its exact norm, max |gain|.

    ``over`` (of the gain's shape) divides the gain first, as a BatchNorm in evaluation mode does.
    """

    shape: tuple[int, int] = (1, 1)

    def __init__(self, weight: Tensor, over: Tensor | None = None) -> None:
        self.weight, self._over = plain(weight), over

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
        return (self.weight,) if self._over is None else (self.weight, self._over)

    def matmul(self, v: Tensor) -> Tensor:
        """Return the norm times v (1, b)."""
        return self.amax() * v

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the norm times u (1, b)."""
        return self.amax() * u

    def amax(self) -> Tensor:
        """Return the norm; NaN if there is a NaN."""
        return largest(self.weight if self._over is None else self.weight / self._over)

    def upper(self) -> Tensor:
        """Return a bound of the norm, 0-d float32, inf where it is not finite: up by 2^-20."""
        return upper_of(self.amax() * (1 + 2.0**-20))


class Rows:
    """A lookup table (rows, d), represented by the norm of its longest row.

    That is the norm for a single index; the spectral norm is for a dense product with the table.
    """

    shape: tuple[int, int] = (1, 1)

    def __init__(self, weight: Tensor) -> None:
        self.weight = plain(weight)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that a product reads."""
        return (self.weight,)

    def matmul(self, v: Tensor) -> Tensor:
        """Return the norm times v (1, b)."""
        return self.amax() * v

    def rmatmul(self, u: Tensor) -> Tensor:
        """Return the norm times u (1, b)."""
        return self.amax() * u

    def amax(self) -> Tensor:
        """Return the norm of the longest row; NaN if there is a NaN. One read and a copy."""
        return row_norms(self.weight).amax()

    def upper(self) -> Tensor:
        """Return a bound of it, 0-d float32, inf where it is not finite: up by (d + 8) * 2^-24."""
        entries = self.weight.shape[1]
        return upper_of(self.amax() * (1 + (entries + 8) * 2.0**-24), entries)
