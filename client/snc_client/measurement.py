"""Measure weights once, without a callback or a service: for a notebook, a test or an audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snc_client.bounds import any_bound
from snc_client.certificate import arithmetic_of, norm_and_upper
from snc_client.estimator import BlockPower
from snc_client.layers import find_layers, grids_of
from snc_client.one_forward import Example
from snc_client.operators import BlockDiagonal, LowRank, Matrix, Operator

# Without a spectral gap 32 iterations from random vectors reach 1e-3 and 48 reach 1e-4. Sigma has
# converged when 8 iterations change it by less than STILL.
ITERATIONS = 8
MOST_ROUNDS = 24
STILL = 1e-6


@dataclass(frozen=True)
class Measurement:
    """The result of `measure` for one matrix.

    ``sigma`` estimates the spectral norm from below, NaN for a weight that is not finite.
    ``sigma_upper`` is a certified bound from above, as a rule 2e-6 higher for a matrix and 1e-3 for
    another operator, NaN without a certificate, infinite beyond the range of float32.
    ``stable_rank`` is frobenius^2 / sigma^2, 0 for a zero matrix.
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
    example_input: Example | None = None,
) -> dict[str, Measurement]:
    """Return sigma, a certified bound, Frobenius norm and stable rank of each matrix, by name.

    The layers of a model have the names that `SNCallback` uses. The tensors of a mapping, such as a
    state dict, have their keys for names; those of a sequence are "0", "1", ...; a single tensor is
    "0". Tensors with fewer than 2 dimensions and tensors that are not floating-point are left out.
    A tensor with more than 2 dimensions is measured as the matrix out x (product of the rest).

    ``conv="operator"`` measures a model's convolutions as linear maps on images of the sizes
    ``grids`` (`snc_client.layers.find_layers`), or of those that they meet in one forward pass of
    ``example_input``, which leaves nothing in the model. Their bound lies some per cent above
    sigma, further where the padding reflects or repeats (`snc_client.convolution_bounds`), and is
    NaN where it would take more than a second.

    Waits for the device. A matrix costs one Gram matrix in float64, some tens of reads of it and a
    Cholesky factorization; another operator some tens of products and its bound. Neither the
    weights nor the global random state change.
    Raises ValueError if there is no matrix.
    """
    if example_input is not None:
        if not isinstance(model_or_weights, nn.Module):
            raise ValueError("example_input must be None for weights without a model")
        if conv == "operator":
            grids = grids_of(model_or_weights, example_input, grids)
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
    double = arithmetic_of(device) == "float64"
    matrices = {k: x for k, x in operators.items() if double and isinstance(x, Matrix)}
    found = {name: norm_and_upper(matrix.weight) for name, matrix in matrices.items()}
    rest = {name: x for name, x in operators.items() if name not in matrices}
    estimates = _converged(list(rest.values()), device)
    for (name, operator), sigma in zip(rest.items(), estimates, strict=True):
        found[name] = sigma, any_bound(operator, sigma)
    return {name: _measurement(*found[name], _frobenius(x)) for name, x in operators.items()}


def _measurement(sigma: Tensor, upper: Tensor, frobenius: Tensor) -> Measurement:
    s, f = float(sigma), float(frobenius)
    stable_rank = (f / s) ** 2 if s > 0 else 0.0 if s == 0 else math.nan
    return Measurement(s, float(upper), f, stable_rank)


def _converged(operators: Sequence[Operator], device: torch.device) -> Tensor:
    """Return sigma, float32 [L], after as many iterations as it takes to converge."""
    power = BlockPower([x.shape for x in operators], device=device)
    sigma = power.step_(operators).sigma
    for _ in range(MOST_ROUNDS):
        before = sigma
        for _ in range(ITERATIONS):
            sigma = torch.fmax(sigma, power.step_(operators).sigma)
        if not bool(((sigma - before) > STILL * sigma).any()):
            break
    return sigma


def _frobenius(operator: Operator) -> Tensor:
    if isinstance(operator, LowRank):
        return operator.frobenius()
    if isinstance(operator, Matrix | BlockDiagonal):
        # Float32 would hold neither 1e-100 nor the norm of many numbers of 3e38.
        norm: Tensor = torch.linalg.vector_norm(operator.weight, dtype=torch.float64)
        return norm
    return torch.full_like(operator.amax(), math.nan)


def _operators(
    source: nn.Module | Tensor | Mapping[str, Tensor] | Sequence[Tensor],
    conv: Literal["reshape", "operator"],
    grids: Mapping[str, Sequence[int]] | None,
) -> dict[str, Operator]:
    if isinstance(source, nn.Module):
        layers = find_layers(source, conv=conv, grids=grids).layers
        return {layer.name: layer.operator() for layer in layers if not layer.sharded}
    if isinstance(source, Tensor):
        source = [source]
    named = source.items() if isinstance(source, Mapping) else enumerate(source)
    return {
        str(name): Matrix(weight.flatten(1))
        for name, weight in named
        if weight.is_floating_point() and weight.ndim >= 2 and weight.numel()
    }
