"""Coverage: the measured layers of a model, and its skipped tensors with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NoReturn, TypeAlias

from torch import Tensor

from snc_client.layers.names import canonical
from snc_client.operators import Operator
from snc_client.operators.sharded import ShardedMatrix

Clip: TypeAlias = Literal["values", "entries", "rows"]

ALL_HEADS: Final = ":logits"
"""After the name of an attention: a further name of the logits of each of its heads."""


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """One measured matrix: a weight, or the slice of a weight that holds one head, gate or expert.

    It names a place in the model and keeps no tensor: `weight` and `operator` look the tensor up at
    each call, so they follow ``load_state_dict(assign=True)``, ``.to()`` and a replaced module.
    Both raise LookupError naming the layer if the tensor was removed or has another shape.
    """

    name: str
    """The state-dict key, with a suffix such as ``[q]`` or ``[3]`` where a weight holds several."""
    kind: str
    shape: tuple[int, ...]
    """As the parameter stores it (one slice of it)."""
    fan_out: int
    fan_in: int
    """Rows and columns of the map that is measured."""
    writable: bool
    """Whether enforcement may multiply `weight`, when the model was walked; ``note`` has the reason
    if not."""
    note: str | None = None
    names: tuple[str, ...] = ()
    """Every name of this weight, ``name`` first: more than one where weights are tied."""
    cappable: bool = False
    """Whether `weight` *is* the measured matrix, so that its singular values can be set."""
    linear: bool = True
    """Whether it is known to be a linear map. If not, a policy for all layers does not apply."""
    clip: Clip = "values"
    """What a cap clips: singular values, the entries of a gain, the rows of a table."""
    _weight: Callable[[], Tensor] = field(kw_only=True, repr=False)
    _operator: Callable[[], Operator] = field(kw_only=True, repr=False)
    _parameter: Callable[[], Tensor] | None = field(kw_only=True, repr=False, default=None)
    _partner: Callable[[], Tensor] | None = field(kw_only=True, repr=False, default=None)
    _part: Callable[[Tensor], Tensor] = field(kw_only=True, repr=False, default=_same)
    _shard: Callable[[Tensor | None], ShardedMatrix] | None = field(
        kw_only=True, repr=False, default=None
    )

    @property
    def positions(self) -> int:
        """Return how many times one product uses each number of the weight: 1 for a matrix.

        A convolution that is measured as an operator is applied at every position of its grid.
        """
        if self.kind not in ("conv", "conv_transpose"):
            return 1
        points = self.fan_in if self.kind == "conv_transpose" else self.fan_out
        return max(1, points // self.shape[0])

    def without_weight(self, reason: str) -> Layer:
        """Return this layer such that each look-up raises LookupError with the ``reason``."""

        def gone(*_: object) -> NoReturn:
            raise LookupError(f"layer {self.name!r}: {reason}")

        shard = None if self._shard is None else gone
        return replace(
            self, _weight=gone, _operator=gone, _parameter=gone, _partner=None, _shard=shard
        )

    def weight(self) -> Tensor:
        """Return the view to multiply in place: a factor f multiplies sigma by f.

        It shares the parameter's memory, has no gradient history and keeps the parameter's dtype.
        Meaningless where ``writable`` is False.
        """
        return self._weight()

    def factors(self) -> tuple[Tensor, ...]:
        """Return the tensors to multiply: `weight` by f, or two factors of a product by sqrt(f)."""
        return (self._weight(), self._partner()) if self._partner else (self._weight(),)

    def operator(self) -> Operator:
        """Return the linear map whose sigma is this layer's. Cheap, except for computed weights."""
        return self._operator()

    @property
    def sharded(self) -> bool:
        """Return whether this process holds a part of the matrix only: it has no `operator`."""
        return self._shard is not None

    def shard(self, values: Tensor | None = None) -> ShardedMatrix:
        """Return the matrix of a ``sharded`` layer, with the pieces that lie here now.

        ``values``: of these instead of the weight, such as its gradient. Raises LookupError as
        `weight` does, also where the weight is whole now.
        """
        assert self._shard is not None, "the caller asks `sharded` first"
        return self._shard(values)

    def parameter(self) -> Tensor | None:
        """Return the parameter object that stores the matrix; None where the matrix is computed.

        Raises LookupError as `weight` does.
        """
        return self._parameter() if self._parameter else None

    def part(self, tensor: Tensor) -> Tensor:
        """Return this layer's share of anything shaped like `parameter`: its gradient, a moment."""
        return self._part(tensor)


@dataclass(frozen=True)
class Skipped:
    """A tensor of the model that is not measured, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str
    sharded: bool = False
    """Whether it is a part of a weight that several ranks hold."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """All layers in model order, and all skipped tensors. ``str()`` is a table."""

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    measured_parameters: int
    """Parameters (scalars, tied ones counted once) inside the layers."""
    total_parameters: int

    def __str__(self) -> str:
        rows = [("layer", "kind", "shape", "enforced", "note")]
        rows += [(x.name, x.kind, _size(x.shape), _enforced(x), _remark(x)) for x in self.layers]
        rows += [(x.name, "-", _size(x.shape), "-", f"skipped: {x.reason}") for x in self.skipped]
        return f"{_aligned(rows)}\n{self.summary}"

    @property
    def summary(self) -> str:
        """Return one line: layers, enforceable layers, parameters measured, tensors skipped."""
        enforced = sum(layer.writable and layer.linear for layer in self.layers)
        share = 100 * self.measured_parameters / max(self.total_parameters, 1)
        return (
            f"{len(self.layers)} layers measured, {enforced} of them can be enforced; "
            f"{self.measured_parameters:,} of {self.total_parameters:,} parameters "
            f"({share:.1f} %); "
            f"{len(self.skipped)} tensors skipped"
        )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _enforced(layer: Layer) -> str:
    return "no" if not layer.writable else "yes" if layer.linear else "if named"


def _remark(layer: Layer) -> str:
    others = dict.fromkeys(map(canonical, layer.names[1:]))
    others.pop(canonical(layer.name), None)  # a wrapper's path to it is no other name
    others = {name: None for name in others if not name.endswith(ALL_HEADS)}
    tied = f"tied with {', '.join(others)}" if others else ""
    return "; ".join(text for text in (tied, layer.note) if text)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    # The last column is free text: padding it would only add spaces.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = ("  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows)
    return "\n".join(lines)
