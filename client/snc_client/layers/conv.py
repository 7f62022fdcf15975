"""Convolutions: views of a kernel as a matrix, or as the linear map of the convolution."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeGuard

from torch import Tensor, nn

from snc_client.layers.view import View, flat, flattened
from snc_client.one_forward import Example, run_once
from snc_client.operators import Adjoint, BlockDiagonal, Convolution, Geometry, Matrix, Operator

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Within 2-8 % of the norm at full resolution, for a fraction of its cost.
GRID = 16

AnyConv: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)


def is_convolution(module: nn.Module) -> TypeGuard[AnyConv]:
    """Return whether the module is one of torch's convolutions."""
    return isinstance(module, CONV + CONV_TRANSPOSE)


def reshaped(module: AnyConv) -> View:
    """View a kernel as outputs x (inputs*kernel), group by group.

    Its norm is not that of the convolution, which is up to sqrt(kernel size) times larger, and
    typically 1.3-2.9 times for 3x3.
    """
    if isinstance(module, CONV_TRANSPOSE):
        operator = _transposed(module.groups)
        return View("conv_transpose", operator=operator, cappable=False)
    if module.groups == 1:
        return View("conv", lay=flat, operator=flattened)
    return View("conv", operator=_grouped(module.groups), cappable=False)


def _grouped(groups: int) -> Callable[[Tensor], Operator]:
    return lambda weight: BlockDiagonal(_groups(flat(weight).flatten(1), groups))


def _transposed(groups: int) -> Callable[[Tensor], Operator]:
    """Return a function: weight (in, out/groups, *kernel) -> one transposed block per group.

    Costs a copy: inputs and outputs cannot be exchanged in place.
    """

    def operator(weight: Tensor) -> Operator:
        blocks = _groups(weight, groups).transpose(1, 2).flatten(2)
        return Matrix(blocks[0]) if groups == 1 else BlockDiagonal(blocks)

    return operator


def _groups(weight: Tensor, groups: int) -> Tensor:
    return weight.view(groups, -1, *weight.shape[1:])


def true_operator(module: AnyConv, grid: Sequence[int] | None) -> View:
    """View a kernel as the map on inputs of size ``grid`` (None: 16, but at least its extent)."""
    reach = _extents(module)
    shape = tuple(max(GRID, k) for k in reach) if grid is None else tuple(grid)
    if len(shape) != len(reach) or min(shape) < 1:
        raise ValueError(f"grid must be {len(reach)} sizes of 1 or more, got {shape}")
    transposed = isinstance(module, CONV_TRANSPOSE)
    geometry = _of_adjoint(module, shape) if transposed else _geometry(module, shape)

    def operator(weight: Tensor) -> Operator:
        convolution = Convolution(weight, geometry)
        return Adjoint(convolution) if transposed else convolution

    kind = "conv_transpose" if transposed else "conv"
    note = f"as an operator on {'x'.join(map(str, shape))} inputs"
    return View(kind, operator=operator, note=note, cappable=False)


def _geometry(module: AnyConv, grid: tuple[int, ...]) -> Geometry:
    mode = module.padding_mode
    return Geometry(grid, module.stride, _pads(module), module.dilation, module.groups, mode)


def _of_adjoint(module: AnyConv, grid: tuple[int, ...]) -> Geometry:
    """Return the convolution whose adjoint is ``module``: it maps the outputs of ``module``."""
    pads = _pads(module)
    axes = zip(grid, module.stride, pads, _extents(module), module.output_padding, strict=True)
    outputs = tuple((h - 1) * s - sum(pair) + k + extra for h, s, pair, k, extra in axes)
    return Geometry(outputs, module.stride, pads, module.dilation, module.groups, limit=grid)


def _pads(module: AnyConv) -> tuple[tuple[int, int], ...]:
    if isinstance(module.padding, str):
        total = [k - 1 if module.padding == "same" else 0 for k in _extents(module)]
        return tuple((size // 2, size - size // 2) for size in total)
    return tuple((size, size) for size in module.padding)


def _extents(module: AnyConv) -> tuple[int, ...]:
    """Return the extent of a kernel, with its dilation, in each dimension."""
    sizes = zip(module.kernel_size, module.dilation, strict=True)
    return tuple(d * (k - 1) + 1 for k, d in sizes)


def grids_of(
    model: nn.Module, example_input: Example, given: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Sequence[int]]:
    """Return the input size of every convolution in one forward pass; those ``given`` come first.

    The forward pass leaves no hook and changes neither buffers nor random states. Raises ValueError
    where it fails.
    """
    try:
        with watch_grids(model, most=sys.maxsize) as met:
            run_once(model, example_input)
    except Exception as error:
        raise ValueError(
            f"example_input must be what the model's forward pass takes, got {error!r}"
        ) from error
    return {**met, **(given or {})}


@contextmanager
def watch_grids(model: nn.Module, most: int = GRID) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield a dict that collects the input size of every convolution that runs in the block.

    For ``find_layers(conv="operator", grids=...)``: module name -> largest size met, cut to
    ``most`` (but not below the kernel). The hooks are removed when the block ends.
    """
    grids: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(_recorder(grids, name, most), with_kwargs=True)
        for name, module in model.named_modules()
        if is_convolution(module)
    ]
    try:
        yield grids
    finally:
        for hook in hooks:
            hook.remove()


def _recorder(grids: dict[str, tuple[int, ...]], name: str, most: int) -> Callable[..., None]:
    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else kwargs["input"]
        seen = inputs.shape[-len(module.kernel_size) :]
        cut = [min(h, max(most, k)) for h, k in zip(seen, _extents(module), strict=True)]
        before = grids.get(name, (0,) * len(cut))
        grids[name] = tuple(map(max, cut, before))

    return record
