"""GraphPower: one launch for an iteration of all layers, a CUDA graph replayed at each step.

Launched one by one, 72 layers take some 700 launches of about 5 microseconds: more host time than
the device needs for the products. `BlockPower` takes its place where recording fails.
**Not yet run on a GPU**, so it is used only with SNC_CUDA_GRAPH=1 in the environment (and, because
the graph needs the kernels, SNC_TRITON=1). Tests on a CPU check that the recorded work is that of
`BlockPower` bit for bit, under a callback too, that it reads and writes only tensors that keep
their address, and when it is recorded anew.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from snc_client.estimator.block_power import (
    LAG,
    MOST_ITERATIONS,
    BlockPower,
    Estimates,
    _explorer,
    _Item,
)
from snc_client.estimator.products import Operator
from snc_client.estimator.solvers import solvers
from snc_client.precision import full_precision

log = logging.getLogger("snc")

Replay: TypeAlias = Callable[[], None]
Recorder: TypeAlias = Callable[[Callable[[], None], torch.device], Replay]

# A weight that is computed anew at each access never keeps its address: such layers are not worth
# a graph, which takes as long to record as several calls without one.
MOST_RECORDINGS = 16


class Addressed(Operator, Protocol):
    """An operator that lists the tensors that its products read."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that must keep their address while the graph is in use."""


def record_cuda(work: Callable[[], None], device: torch.device) -> Replay:
    """Record ``work`` as a CUDA graph on a side stream, where it runs once before.

    In that run libraries load and allocate their state of the stream, which a recording must not
    do; the recorded work runs when it is replayed.

    `torch.cuda.graph` would synchronise, collect garbage and empty the allocator's cache before:
    that would delay a training loop. Other threads may allocate meanwhile.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.device(device), torch.cuda.stream(side):
        work()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    current.wait_stream(side)
    return graph.replay


class GraphPower(BlockPower):
    """`BlockPower` whose calls on all layers replay a graph: one launch between two small copies.

    The blocks keep their address. The graph is recorded at the second call, and again when a weight
    has moved (``load_state_dict(assign=True)``, ``.to()``), has another dtype, or a saved state was
    loaded. Calls on some layers, the first call, and all calls where recording fails or weights
    move each time run as in `BlockPower`. The host chooses at each step which layers explore, with
    which noise: the graph reads both from a small tensor that is filled before each replay.

    A layer that lags makes all layers iterate as often as it does, because a replay is cheap.
    ``record`` is `record_cuda` or, on a CPU, a function of a test.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        device: torch.device,
        block: int = 16,
        seed: int = 0,
        record: Recorder = record_cuda,
    ) -> None:
        self._recording = False
        super().__init__(shapes, device=device, block=block, seed=seed)
        self.recordings = 0
        self._record = record
        self._key: Hashable = None
        self._replay: Replay | None = None
        self._usable = bool(shapes) and self._graph_can_hold_it()
        self._span = torch.arange(max((b.numel() for b in self._blocks), default=0)).to(
            self._device
        )
        # Rows: does the layer explore; where its explorer's noise starts; where the refill's does.
        self._choices = torch.zeros(3, len(shapes), dtype=torch.int64, device=self._device)
        self._found = torch.zeros(3, len(shapes), device=self._device)

    @torch.no_grad()
    def step_(
        self,
        operators: Sequence[Operator],
        which: Sequence[int] | None = None,
        *,
        lag: float | Sequence[float] = LAG,
    ) -> Estimates:
        """Advance the layers as `BlockPower.step_` does."""
        everyone = which is None or list(which) == list(range(len(self._shapes)))
        if not (everyone and self._usable and all(self._steps)):
            return super().step_(operators, which, lag=lag)
        items = self._items(operators, None)
        times = MOST_ITERATIONS if any(map(self._late, range(len(items)))) else 1
        if not self._recorded(items):
            return super().step_(operators, which, lag=lag)
        self._hurried.clear()
        assert self._replay is not None
        for _ in range(times):
            self._choose()
            self._replay()
        return Estimates(*self._found.clone().unbind())

    def _graph_can_hold_it(self) -> bool:
        return self._record is not record_cuda or solvers(self._noise.device).one_launch

    @torch.no_grad()
    def _recorded(self, items: Sequence[_Item]) -> bool:
        """Return whether the graph fits these weights, after recording one if needed."""
        key = self._addresses(items)
        if key is not None and key == self._key:
            return True
        if key is not None and self.recordings < MOST_RECORDINGS:
            try:
                self._rehearse_and_record(items)
            except Exception:
                log.warning("snc: no graph could be recorded, measuring is slower", exc_info=True)
            else:
                self._key = key
                return True
        self._usable, self._replay = False, None
        return False

    def _rehearse_and_record(self, items: Sequence[_Item]) -> None:
        """Run the work once, so that every library is loaded, record it, and restore the blocks."""
        self.recordings += 1
        before, steps = [block.clone() for block in self._blocks], list(self._steps)

        def work() -> None:
            estimates = self._iterate(items)
            self._found.copy_(torch.stack(estimates.columns))

        self._recording = True
        try:
            with full_precision(self._device):
                self._choose()
                work()
                self._replay = self._record(work, self._device)
        finally:
            self._recording = False
            self._steps = steps
            for block, old in zip(self._blocks, before, strict=True):
                block.copy_(old)

    def _addresses(self, items: Sequence[_Item]) -> Hashable:
        """Return a key of the tensors that the graph reads; None if an operator lists none."""
        read = [getattr(item.operator, "tensors", None) for item in items]
        if any(tensors is None for tensors in read):
            return None
        tensors = [t for some in read if some for t in some] + self._blocks + [self._noise]
        return tuple((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors)

    def _choose(self) -> None:
        """Count a step of every layer; copy the host's choices through pinned memory."""
        rows: list[list[int]] = [[], [], []]
        for layer, block in enumerate(self._blocks):
            step = self._steps[layer]
            rows[0].append(int(self._explores(layer, step)))
            rows[1].append(self._start(block.shape[1], layer, step))
            rows[2].append(self._start(block.numel(), layer, step + 1))
            self._steps[layer] = step + 1
        choices = torch.tensor(rows, dtype=torch.int64, device="cpu")
        pinned = choices.pin_memory() if self._device.type == "cuda" else choices
        self._choices.copy_(pinned, non_blocking=True)

    def _explored(self, layer: int) -> Tensor:
        if not self._recording:
            return super()._explored(layer)
        v_BN: Tensor = self._blocks[layer]
        b, n = v_BN.shape
        if b == n:
            return v_BN
        new = self._noise[self._choices[1, layer] + self._span[:n]]
        last = torch.where(self._choices[0, layer] > 0, _explorer(v_BN[:-1], new), v_BN[-1:])
        return torch.cat([v_BN[:-1], last])

    def _random_rows(self, layer: int) -> Tensor:
        if not self._recording:
            return super()._random_rows(layer)
        b, n = self._blocks[layer].shape
        rows: Tensor = self._noise[self._choices[2, layer] + self._span[: b * n]]
        return rows.view(b, n) / math.sqrt(n)

    def _store(self, layer: int, block_BN: Tensor) -> None:
        self._blocks[layer].copy_(block_BN)


KINDS: dict[str, Callable[..., BlockPower]] = {"cuda": GraphPower}  # by device, if asked for
ASKED = "SNC_CUDA_GRAPH"


def warm_blocks(
    shapes: Sequence[tuple[int, int]], *, device: torch.device, block: int = 16
) -> BlockPower:
    """Return the warm state of the layers of one device.

    With SNC_CUDA_GRAPH=1 in the environment a CUDA device gets a `GraphPower`. It is not the
    default, because it has not yet run on a GPU.
    """
    kind = KINDS.get(device.type, BlockPower) if os.environ.get(ASKED) == "1" else BlockPower
    return kind(shapes, device=device, block=block)
