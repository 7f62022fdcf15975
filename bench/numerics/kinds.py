"""Convolutions against their explicit operator, and what the callback keeps in memory."""

from __future__ import annotations

import gc

import torch
from spectra import norm
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.bounds import convolution_bound
from snc_client.estimator import BlockPower
from snc_client.estimator.block_power import SPARE_NOISE
from snc_client.layers import find_layers, watch_grids

GRID = 12
CONVOLUTIONS = {
    "8x8 3x3": dict(in_channels=8, out_channels=8, kernel_size=3, padding=1),
    "8x8 3x3 circular": dict(
        in_channels=8, out_channels=8, kernel_size=3, padding=1, padding_mode="circular"
    ),
    "8x8 3x3 reflect": dict(
        in_channels=8, out_channels=8, kernel_size=3, padding=1, padding_mode="reflect"
    ),
    "8x8 3x3 replicate": dict(
        in_channels=8, out_channels=8, kernel_size=3, padding=1, padding_mode="replicate"
    ),
    "16x8 3x3 stride 2": dict(in_channels=8, out_channels=16, kernel_size=3, stride=2, padding=1),
    "stem 12x3 7x7 stride 2": dict(
        in_channels=3, out_channels=12, kernel_size=7, stride=2, padding=3
    ),
    "depthwise 3x3": dict(in_channels=8, out_channels=8, kernel_size=3, padding=1, groups=8),
    "2 groups, dilation 2": dict(
        in_channels=8, out_channels=8, kernel_size=3, padding=2, dilation=2, groups=2
    ),
}


def convolutions(calls: int) -> list[tuple[str, float, float | None]]:
    """Return name, sigma / norm - 1 and sigma_upper / norm - 1 (None: not certified) of each."""
    print(f"\n6. Convolutions on {GRID} x {GRID}, init and with a constant kernel, {calls} calls:")
    print("   sigma and sigma_upper against the explicit operator; reshaped kernel for comparison")
    found = []
    for name, keywords in CONVOLUTIONS.items():
        for kernel in ("init", "constant"):
            torch.manual_seed(0)
            module = nn.Conv2d(bias=False, **keywords)  # type: ignore[arg-type]
            if kernel == "constant":
                nn.init.constant_(module.weight, 0.1)
            found.append(_convolution(f"{name}, {kernel}", nn.Sequential(module), calls))
    return found


@torch.no_grad()
def _convolution(name: str, model: nn.Sequential, calls: int) -> tuple[str, float, float | None]:
    module = model[0]
    inputs = module.in_channels * GRID * GRID
    image = torch.eye(inputs).view(inputs, module.in_channels, GRID, GRID)
    with watch_grids(model, most=GRID) as grids:
        exact = norm(model(image).flatten(1).T)
    (layer,) = find_layers(model, conv="operator", grids=grids).layers
    blocks = BlockPower([layer.operator().shape], device=torch.device("cpu"))
    for _ in range(calls):
        sigma = blocks.step_([layer.operator()]).sigma[0]
    upper = float(convolution_bound(layer.operator())) / exact - 1
    reshaped = norm(module.weight.flatten(1)) / exact - 1
    said = "none" if upper != upper else f"{upper:+.1e}"
    line = f"sigma {float(sigma) / exact - 1:+.1e}  sigma_upper {said:8s}  reshaped {reshaped:+.2f}"
    print(f"   {name:34s} {line}")
    return name, float(sigma) / exact - 1, None if upper != upper else upper


def memory() -> tuple[float, float]:
    """Return floats kept per row of the small sides, and copies of the weights: 0 or 1 (strict)."""
    print("\n7. Memory: what lives between two steps, of two matrices 1024 x 512 and 512 x 256")
    rows, weights = 512 + 256, 1024 * 512 + 512 * 256
    kept = []
    model = callback = None
    for strict in (False, True):
        del model, callback  # so that the next count begins without them
        model = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.Linear(512, 256, bias=False))
        before = _floats_alive()
        callback = SNCallback(model, threshold="2x init", strict=strict)
        callback.step()
        kept.append(_floats_alive() - before)
        callback.close()
    noise = SPARE_NOISE + 16 * 512
    per_row, copies = (kept[0] - noise) / rows, (kept[1] - kept[0]) / weights
    print(
        f"   {per_row:.1f} floats a row of the small side, and {noise:,} once; strict keeps", end=""
    )
    print(f" {copies:.2f} copies of the weights it holds")
    return per_row, copies


def _floats_alive() -> int:
    gc.collect()
    found = {}
    for x in gc.get_objects():
        if type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return sum(found.values()) // 4
