"""BlockPower: the warm state of a list of layers, and one iteration for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from snc_client.devices import reading_is_free, to_device
from snc_client.estimator.products import Operator, gram, joined, largest, there_and_back
from snc_client.estimator.ritz import Ritz, orthonormalizer, revive, ritz
from snc_client.estimator.solvers import solvers
from snc_client.precision import full_precision

COLD_ITERATIONS = 16  # a Gaussian 3072 x 768 to 5e-3; 8 leave 2.4e-2
# One iteration suffices in steady training; in the first 25 steps, and after any leap, sigma errs
# by up to 2e-2. The residual shows it: sigma errs by about its square. Above LAG a layer gets up to
# 4 iterations in a call, which leave 5e-4; later a layer takes 1.02 to 1.06 on average.
LAG, MOST_ITERATIONS = 0.0175, 4
# Where the host must not read it, the first 33 calls (8 before the training) make 4 iterations.
YOUNG = COLD_ITERATIONS + 32 * MOST_ITERATIONS
EXPLORE_STEPS = 8  # an explorer drawn anew at every step is replaced before it can grow
# Where all terms of a long float32 sum have one sign and round alike, sigma comes out up to 4.0e-6
# above the norm, on a CPU whose library adds 384 terms one by one. It is lowered by part of that.
EXCESS, CHAIN = 2.5e-6, 384
SPARE_NOISE = 1 << 18  # where windows of the noise may start, at every 16th number:
ALIGNED = 16  # 64 bytes, because the last bits of a CPU's products depend on where operands lie


@dataclass(frozen=True)
class Estimates:
    """One number per layer, on the layers' device, float32.

    ``sigma`` = ||W'u|| of a unit vector u: at most the spectral norm, up to rounding (2e-6). NaN
    where W, or a product with it, is not finite.
    ``residual`` = ||W'u - s v|| with s u = W v, in units of sigma: *some* singular value (0, if W
    is not square) lies within residual / sqrt(2) of s, and 0 <= sigma - s <= residual^2 / (2 s).
    It does not show a larger singular value that the block has not found. (For m < n, W' takes the
    place of W.)
    ``captured`` = ||W V||_F of all vectors of the block but the last, as they were before the
    iteration: ||W||_F^2 - captured^2 is the energy that lies outside of them.
    """

    sigma: Tensor
    residual: Tensor
    captured: Tensor

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three vectors, in the order of the fields."""
        return self.sigma, self.residual, self.captured


@dataclass(frozen=True)
class _Item:
    """One layer of a call and its operator."""

    layer: int
    operator: Operator


@dataclass(frozen=True)
class _Products:
    """Blocks and their products, for K layers of one small side; U and X scaled to entries <= 1."""

    v_KBN: Tensor
    x_KBN: Tensor
    r_KBB: Tensor
    g_KBB: Tensor
    u_scale: Tensor  # [K] W V = u_scale * U
    x_scale: Tensor  # [K] W'U = x_scale * X


class BlockPower:
    """Warm state of a list of layers on one device, between calls; one iteration per call or more.

    ``shapes``: (m, n) per layer. ``block``: vectors kept per layer, at most min(m, n); 16 to hold a
    threshold, 8 to watch. Memory: block floats per row of a weight's small side.
    Cost of an iteration: every weight is read twice, in m*n*block multiply-adds each time.

    The state is kept here and never in module buffers: no state_dict, EMA copy or DDP broadcast
    changes it. All randomness comes from ``seed``, equal on all ranks; the global generators are
    neither read nor advanced.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        device: torch.device,
        block: int = 16,
        seed: int = 0,
    ) -> None:
        if block < 2:
            raise ValueError(f"block must be at least 2, got {block}: one vector is for exploring")
        for i, shape in enumerate(shapes):
            if len(shape) != 2 or min(shape) < 1:
                raise ValueError(
                    f"shapes[{i}] must be (outputs, inputs), both at least 1, got {tuple(shape)}: "
                    "leave empty weights out"
                )
        self._shapes = [(int(m), int(n)) for m, n in shapes]
        self._device = torch.device(device)
        self._block, self._seed = block, seed
        self._below = torch.tensor(
            [1 - EXCESS * min(1, max(shape) / CHAIN) for shape in self._shapes], device=self._device
        )
        self._steps = [0] * len(self._shapes)
        self._hurried: set[int] = set()
        sizes = [math.prod(self._block_shape(i)) for i in range(len(self._shapes))]
        self._noise = _normal(max(sizes, default=0) + SPARE_NOISE, seed).to(self._device)
        self._blocks = [self._random_rows(i) for i in range(len(self._shapes))]
        solvers(self._noise.device)  # compiles and checks the kernels now, and not in a step

    @torch.no_grad()
    def step_(
        self,
        operators: Sequence[Operator],
        which: Sequence[int] | None = None,
        *,
        lag: float | Sequence[float] = LAG,
    ) -> Estimates:
        """Advance all layers, or only those at the indexes ``which``, by one iteration or more.

        ``operators`` matches the layers (or ``which``) one to one; the result has their order. The
        first call on a layer makes 16 iterations. A layer whose residual is above ``lag`` * sigma
        (of all, or one for each), as after an abrupt step, gets up to 4. On a CPU this call reads
        the residual. On any other device the host does not wait for it: there a layer's first 32
        calls make 4 iterations, and later the call that follows `hurry`.
        A layer that is not finite gives NaN and starts afresh: one finite step later it has a
        sigma, seven later within 1e-3.
        """
        items, free = self._items(operators, which), reading_is_free(self._device)
        with full_precision(self._device):
            cold = [item for item in items if self._steps[item.layer] == 0]
            late = [] if free else [item for item in items if self._late(item.layer)]
            for _ in range(COLD_ITERATIONS - 1 if cold else 0):
                self._iterate(cold)
            for _ in range(MOST_ITERATIONS - 1 if late else 0):
                self._iterate(late)
            self._hurried.difference_update(item.layer for item in items)
            found = self._iterate(items)
            return self._catch_up(items, found, lag) if free else found

    def hurry(self, layers: Iterable[int]) -> None:
        """Let the next call make 4 iterations for ``layers``, whose block lags.

        For devices whose residuals the host reads later, when they have arrived.
        """
        self._hurried.update(layers)

    def vectors(self, layer: int) -> Tensor:
        """Return the block of a layer: float32 (b, min(m, n)), nearly orthonormal, best first."""
        return self._blocks[layer]

    @torch.no_grad()
    def refill_(self, failed: Tensor, which: Sequence[int] | None = None) -> None:
        """Draw all vectors but the first anew, where ``failed`` (bool, on the device) is True.

        ``failed`` has one entry for each layer, or for each of those at the indexes ``which``.
        For a layer whose certificate failed well above sigma: the block has lost the top direction
        and finds it from fresh vectors in a few steps, where the explorer alone takes more.
        """
        with full_precision(self._device):
            for k, i in enumerate(range(len(self._blocks)) if which is None else which):
                block = self._blocks[i]
                rows = torch.cat([block[:1], self._random_rows(i)[1:]]).unsqueeze(0)
                fresh = (orthonormalizer(gram(rows)) @ rows)[0]
                self._store(i, torch.where(failed[k], fresh, block))

    def state_dict(self) -> dict[str, Any]:
        """Return shapes, steps and blocks: plain containers and tensors, no code to unpickle."""
        return {
            "shapes": list(self._shapes),
            "seed": self._seed,
            "steps": list(self._steps),
            "blocks": [block.clone() for block in self._blocks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``. Raises ValueError if it belongs to other layers; then nothing
        has changed.
        """
        blocks, steps = state["blocks"], state["steps"]
        for name, ours, theirs in (
            ("shapes", self._shapes, [tuple(shape) for shape in state["shapes"]]),
            ("block sizes", [b.shape for b in self._blocks], [b.shape for b in blocks]),
            ("number of steps", len(self._shapes), len(steps)),
        ):
            if ours != theirs:
                raise ValueError(
                    f"{name} of the state must be those of the layers, {ours}, got {theirs}: "
                    "start without it, the first call makes up for it"
                )
        self._blocks = [b.detach().to(self._device, torch.float32, copy=True) for b in blocks]
        self._steps = [int(step) for step in steps]
        self._seed = int(state["seed"])
        self._noise = _normal(self._noise.numel(), self._seed).to(self._device)

    def _items(self, operators: Sequence[Operator], which: Sequence[int] | None) -> list[_Item]:
        layers = range(len(self._shapes)) if which is None else which
        if len(operators) != len(layers):
            raise ValueError(f"operators must be {len(layers)}, one a layer, got {len(operators)}")
        items = [_Item(*item) for item in zip(layers, operators, strict=True)]
        for item in items:
            if tuple(item.operator.shape) != self._shapes[item.layer]:
                raise ValueError(
                    f"shape of layer {item.layer} must be {self._shapes[item.layer]}, got "
                    f"{tuple(item.operator.shape)}: make a new BlockPower when layers change"
                )
        return items

    def _late(self, layer: int) -> bool:
        return layer in self._hurried or 0 < self._steps[layer] < YOUNG

    def _catch_up(
        self, items: Sequence[_Item], found: Estimates, lag: float | Sequence[float]
    ) -> Estimates:
        """Iterate on while a residual is large, up to 4 times in all; the host reads it freely."""
        limit = lag if isinstance(lag, float) else torch.tensor(lag, device="cpu")
        for _ in range(MOST_ITERATIONS - 1):
            late = (found.residual > limit * found.sigma).tolist()  # False for NaN
            if not any(late):
                break
            again = self._iterate(
                [item for item, is_late in zip(items, late, strict=True) if is_late]
            )
            places = torch.tensor([i for i, is_late in enumerate(late) if is_late], device="cpu")
            pairs = zip(found.columns, again.columns, strict=True)
            found = Estimates(*(x.index_copy(0, places, y) for x, y in pairs))
        return found

    def _iterate(self, items: Sequence[_Item]) -> Estimates:
        free = reading_is_free(self._device)
        order: list[_Item] = []
        columns: list[Tensor] = []
        for groups in self._equal_blocks(items):
            products = [self._multiply(group, free) for group in groups]
            both = ritz(
                joined([p.r_KBB for p in products]),
                joined([p.g_KBB for p in products]),
                look=free,
            )
            turns = both.split([len(group) for group in groups]) if len(groups) > 1 else [both]
            rotated = [
                torch.bmm(turn.z_KBB, p.x_KBN) for p, turn in zip(products, turns, strict=True)
            ]
            columns += [
                _measure(*each, look=free) for each in zip(products, turns, rotated, strict=True)
            ]
            self._keep(groups, rotated, free)
            order += [item for group in groups for item in group]
        if not order:
            return Estimates(*self._noise.new_empty(3, 0).unbind())
        found = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        if order != list(items):
            places = {item.layer: i for i, item in enumerate(order)}
            at = to_device([places[item.layer] for item in items], self._device, torch.int64)
            found = found.index_select(1, at)
        sigma, residual, energy, scale = found.unbind()
        return Estimates(sigma * self._lowered(items), residual, energy.sqrt().mul_(scale))

    def _lowered(self, items: Sequence[_Item]) -> Tensor:
        """Return what sigma of each item is multiplied by, so that no rounding lifts it, [K]."""
        layers = [item.layer for item in items]
        if layers == list(range(len(self._shapes))):
            return self._below
        return torch.stack([self._below[layer] for layer in layers])

    def _equal_blocks(self, items: Sequence[_Item]) -> list[list[list[_Item]]]:
        """Sort items into groups of vectors of equal length, and those by their number."""
        equal: dict[int, dict[int, list[_Item]]] = {}
        for item in sorted(items, key=lambda item: item.operator.shape):
            b, n = self._block_shape(item.layer)
            equal.setdefault(b, {}).setdefault(n, []).append(item)
        return [list(groups.values()) for groups in equal.values()]

    def _multiply(self, group: Sequence[_Item], free: bool) -> _Products:
        """Multiply by W and W', and count a step of each layer."""
        v_KBN = torch.stack([self._explored(item.layer) for item in group])
        x, r, u_scale = there_and_back([item.operator for item in group], v_KBN, together=free)
        return scaled(v_KBN, x, r, u_scale)

    def _explored(self, layer: int) -> Tensor:
        """Count a step of a layer and return its block, every 8 steps with a new weakest vector."""
        step, v_BN = self._steps[layer], self._blocks[layer]
        self._steps[layer] = step + 1
        if not self._explores(layer, step):
            return v_BN
        new = self._window(v_BN.shape[1], layer, step)
        return torch.cat([v_BN[:-1], _explorer(v_BN[:-1], new)])

    def _explores(self, layer: int, step: int) -> bool:
        b, n = self._blocks[layer].shape
        return step > 0 and b < n and (step + layer) % EXPLORE_STEPS == 0  # b == n spans all of R^n

    def _keep(
        self, groups: Sequence[Sequence[_Item]], rotated: Sequence[Tensor], free: bool
    ) -> None:
        """Store the next block of every layer: orthonormal rows, best first."""
        unit = [
            revive(y_KBN, partial(self._random_rows, group[0].layer), look=free)
            for group, y_KBN in zip(groups, rotated, strict=True)
        ]
        turns = orthonormalizer(joined([gram(y) for y in unit]))
        sizes = [len(group) for group in groups]
        for group, y, turn in zip(groups, unit, torch.split(turns, sizes), strict=True):
            for item, block in zip(group, torch.bmm(turn, y).unbind(), strict=True):
                self._store(item.layer, block)

    def _store(self, layer: int, block_BN: Tensor) -> None:
        self._blocks[layer] = block_BN

    def _block_shape(self, layer: int) -> tuple[int, int]:
        """Return the number of a layer's vectors and their length."""
        small = min(self._shapes[layer])
        return min(self._block, small), small

    def _random_rows(self, layer: int) -> Tensor:
        """Return b random vectors of about unit length, nearly orthogonal if n is large."""
        b, n = self._block_shape(layer)
        return self._window(b * n, layer, self._steps[layer]).view(b, n) / math.sqrt(n)

    def _window(self, size: int, layer: int, step: int) -> Tensor:
        """Return ``size`` normal numbers that depend on (seed, layer, step) alone.

        A window into numbers drawn once: no generator runs in the training step.
        """
        start = self._start(size, layer, step)
        return self._noise[start : start + size]

    def _start(self, size: int, layer: int, step: int) -> int:
        places = (self._noise.numel() - size) // ALIGNED + 1
        return crc32(f"{self._seed}/{layer}/{step}".encode()) % places * ALIGNED


def _explorer(kept_BN: Tensor, new_N: Tensor) -> Tensor:
    """Return a unit vector orthogonal to those kept, as a block of one row."""
    # Twice: once leaves enough of the kept directions to make sigma dip at every restart.
    for _ in range(2):
        new_N = new_N - (kept_BN @ new_N) @ kept_BN
    unit: Tensor = new_N / torch.linalg.vector_norm(new_N)
    return unit.unsqueeze(0)


def scaled(v_KBN: Tensor, x_KBN: Tensor, r_KBB: Tensor, u_scale: Tensor) -> _Products:
    """Scale X, which is overwritten, to entries <= 1."""
    x_scale = largest(x_KBN)
    x_KBN.div_(x_scale.view(-1, 1, 1))
    return _Products(v_KBN, x_KBN, r_KBB, gram(x_KBN), u_scale, x_scale)


def _measure(p: _Products, turn: Ritz, y_KBN: Tensor, *, look: bool) -> Tensor:
    """Return sigma and residual of the first Ritz vector, the energy and its scale: [4, K].

    ``look``: where the host reads freely, it spares what no layer needs that is finite and not 0.
    """
    some = (turn.reach > 0) & (turn.growth > 0)  # False where W is not finite
    usual = look and all(some.tolist())

    def unless(condition: Tensor, value: Tensor, other: float) -> Tensor:
        return value if usual else torch.where(condition, value, other)

    quotient = unless(some, turn.growth / turn.reach, 0.0).sqrt().float()
    sigma = unless(turn.finite, p.x_scale * quotient, math.nan)
    # W'u - s v over sigma, as a difference of vectors: that of numbers has a floor of 3e-4.
    v_KN, y_KN = torch.bmm(turn.z_KBB[:, :1], p.v_KBN)[:, 0], y_KBN[:, 0]
    length = unless(some, torch.linalg.vector_norm(y_KN, dim=-1), 1.0)
    reach = turn.reach.float() / (v_KN.square().sum(-1) * length)
    along = p.u_scale / p.x_scale * reach
    gap = torch.linalg.vector_norm(y_KN / length[:, None] - along[:, None] * v_KN, dim=-1)
    relative = unless(some, gap, 0.0)
    residual = unless(turn.finite, sigma * relative, math.nan)
    return torch.stack([sigma, residual, turn.energy.float(), p.u_scale])


def _normal(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
