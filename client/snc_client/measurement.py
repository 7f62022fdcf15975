"""Measure weights at once, with no callback and no service: for a notebook, a test or an audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snc_client.certificate import carry, largest_upper, sigma_upper
from snc_client.estimator import BlockPower
from snc_client.layers import find_layers
from snc_client.operators import (
    Adjoint,
    BlockDiagonal,
    Convolution,
    Gain,
    LowRank,
    Matrix,
    Operator,
    Rows,
)
from snc_client.torus import on_torus

# A cold start needs more iterations than the warm one of a training step: on a spectrum without a
# gap 32 reach 1e-3 and 48 reach 1e-4. Sigma that stands still over 8 of them has arrived.
ITERATIONS = 8
MOST_ROUNDS = 24
STILL = 1e-6


@dataclass(frozen=True)
class Measurement:
    """One matrix. NaN where the weight is not finite.

    ``sigma`` estimates the spectral norm from below; ``sigma_upper`` is a certified bound from
    above, usually 1e-3 higher, NaN for a map that cannot be certified. ``stable_rank`` is
    frobenius^2 / sigma^2, 0 for a zero matrix.
    """

    sigma: float
    sigma_upper: float
    frobenius: float
    stable_rank: float


def measure(
    model_or_weights: nn.Module | Tensor | Mapping[str, Tensor] | Sequence[Tensor],
    *,
    conv: Literal["reshape", "operator"] = "reshape",
    grids: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Measurement]:
    """Return sigma, a certified bound, Frobenius norm and stable rank of each matrix, by name.

    A model gives its layers, with the names that `SNCallback` uses. A mapping such as a state dict
    keeps its names, a sequence gets "0", "1", ..., a single tensor "0"; of these, tensors with
    fewer than 2 dimensions and those that are not floating-point are left out, and more dimensions
    are seen as out x rest.

    ``conv="operator"`` measures a model's convolutions as the maps they are, on inputs of the sizes
    ``grids`` (`snc_client.layers.find_layers`); their bound lies some per cent above sigma, more
    where padding reflects or repeats (`snc_client.torus`), and is NaN where it would take too long.

    Waits for the device; costs some tens of reads of each weight and one Gram matrix with a
    Cholesky factorisation in float64. Nothing is changed, the global random state included. Raises
    ValueError if there is no matrix.
    """
    operators = _operators(model_or_weights, conv, grids)
    if not operators:
        raise ValueError(
            "model_or_weights must hold a floating-point tensor with 2 or more dimensions, "
            f"got {type(model_or_weights).__name__} without one"
        )
    names: dict[torch.device, list[str]] = {}
    for name, operator in operators.items():
        names.setdefault(operator.amax().device, []).append(name)
    found: dict[str, Measurement] = {}
    for device, here in names.items():
        found.update(_measured({name: operators[name] for name in here}, device))
    return {name: found[name] for name in operators}


@torch.no_grad()
def _measured(operators: Mapping[str, Operator], device: torch.device) -> dict[str, Measurement]:
    listed = list(operators.values())
    sigma = _converged(listed, device)
    columns = torch.stack(
        [
            sigma,
            torch.stack([_bound_of(x, s) for x, s in zip(listed, sigma, strict=True)]),
            torch.stack([_frobenius(x) for x in listed]).to(sigma),
        ]
    )
    return {
        name: Measurement(s, upper, f, (f / s) ** 2 if s > 0 else 0.0 if s == 0 else math.nan)
        for name, (s, upper, f) in zip(operators, columns.T.tolist(), strict=True)
    }


def _converged(operators: Sequence[Operator], device: torch.device) -> Tensor:
    """Return sigma, float32 [L], iterated until it stands still."""
    power = BlockPower([x.shape for x in operators], device=device)
    sigma = power.step_(operators).sigma
    for _ in range(MOST_ROUNDS):
        before = sigma
        for _ in range(ITERATIONS):
            sigma = torch.fmax(sigma, power.step_(operators).sigma)
        if not bool(((sigma - before) > STILL * sigma).any()):
            break
    return sigma


def _bound_of(operator: Operator, sigma: Tensor) -> Tensor:
    """Return the bound of any map: nothing is divided by this one."""
    if isinstance(operator, Convolution | Adjoint):
        return convolution_bound(operator)
    return bound(operator, sigma)


def certifiable(operator: Operator) -> bool:
    """Return whether `bound` proves anything for this map."""
    return isinstance(operator, Matrix | BlockDiagonal | LowRank | Gain | Rows)


def bound(operator: Operator, sigma: Tensor) -> Tensor:
    """Return a certified bound of the operator, 0-d float32; NaN where there is none yet."""
    if isinstance(operator, Matrix):
        return sigma_upper(operator.weight, sigma)
    if isinstance(operator, BlockDiagonal):
        # Blocks share no input and no output: the largest bound of a block bounds them all.
        if operator.weight.device.type == "cpu":
            return largest_upper(operator.weight, sigma)
        # Factored together, some of CUDA's libraries make the host wait.
        return torch.stack([sigma_upper(x, sigma) for x in operator.weight.unbind()]).amax()
    if isinstance(operator, LowRank):
        matrix, error = operator.small()
        return carry(sigma_upper(matrix, sigma), drift=error.float())
    if isinstance(operator, Gain | Rows):
        return operator.upper()
    return torch.full_like(sigma, math.nan)


def convolution_bound(operator: Convolution | Adjoint) -> Tensor:
    """Return a certified bound of a convolution as the map it is, 0-d float32.

    From its matrices on a torus (`snc_client.torus`), so it is some per cent above the norm with
    zeros for padding, and too loose to divide by: that is why `bound` has none. NaN where it would
    take more than a second.
    """
    convolution = operator.convolution if isinstance(operator, Adjoint) else operator
    torus = on_torus(convolution)
    if torus is None:
        return torch.full_like(operator.amax(), math.nan)
    found = largest_upper(torus.matrices, _largest_norm(torus.matrices))
    upper = carry(found * torus.times, drift=torus.error.float() * torus.times)
    return torch.where(upper.isnan(), math.inf, upper)


def _largest_norm(matrices_KMN: Tensor) -> Tensor:
    """Estimate the largest norm of a stack from below, by power iterations on all of them."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(matrices_KMN.shape[2], 4, generator=generator, dtype=torch.float64)
    v = first.to(matrices_KMN.device).expand(len(matrices_KMN), -1, -1)
    for _ in range(ITERATIONS * 4):
        u = matrices_KMN @ v
        x = matrices_KMN.mT @ u
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        v = torch.where(norm > 0, x / norm, v)
    found: Tensor = torch.linalg.vector_norm(matrices_KMN @ v, dim=1).amax()
    return found


def _frobenius(operator: Operator) -> Tensor:
    if isinstance(operator, LowRank):
        return operator.frobenius()
    if isinstance(operator, Matrix | BlockDiagonal):
        norm: Tensor = torch.linalg.vector_norm(operator.weight, dtype=torch.float64)
        return norm.float()
    return torch.full_like(operator.amax(), math.nan)


def _operators(
    source: nn.Module | Tensor | Mapping[str, Tensor] | Sequence[Tensor],
    conv: Literal["reshape", "operator"],
    grids: Mapping[str, Sequence[int]] | None,
) -> dict[str, Operator]:
    if isinstance(source, nn.Module):
        layers = find_layers(source, conv=conv, grids=grids).layers
        return {layer.name: layer.operator() for layer in layers}
    if isinstance(source, Tensor):
        source = [source]
    named = source.items() if isinstance(source, Mapping) else enumerate(source)
    return {
        str(name): Matrix(weight.flatten(1))
        for name, weight in named
        if weight.is_floating_point() and weight.ndim >= 2 and weight.numel()
    }
