"""ShardedGroup: measures and holds the sharded layers, all processes of them together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snc_client.callback.guard.sharded_guard import ShardedGuard
from snc_client.callback.interruption import signals_wait
from snc_client.callback.monitor.device_group import rms
from snc_client.callback.monitor.enforcement import presumed
from snc_client.callback.monitor.outside_energy import SUDDEN, OutsideEnergy
from snc_client.callback.monitor.sharded.actions import ShardedActions
from snc_client.callback.monitor.sharded.carried import ShardedBounds
from snc_client.callback.monitor.sharded.contribution import Extras, extras, is_gathered
from snc_client.callback.monitor.sharded.gradient_sums import GradientSums
from snc_client.callback.monitor.sharded.layer_sums import (
    FROBENIUS,
    MOVED,
    NO_UPDATE,
    UPDATE,
    LayerSums,
    frobenius,
    norms_of,
)
from snc_client.callback.monitor.sharded.roll_call import RollCall
from snc_client.callback.monitor.sharded.sharded_sums import Found, ShardedSums
from snc_client.callback.monitor.step_planner import StepPlanner
from snc_client.callback.monitor.thresholds import Thresholds
from snc_client.callback.readback.device_row import DeviceRow
from snc_client.callback.readback.metrics import GUARD_METRIC, NO_SHARE
from snc_client.certificate import sigma_upper, upper_of_gram
from snc_client.devices import to_device
from snc_client.estimator import Estimates
from snc_client.layer_row import LayerRow, Mask
from snc_client.layers import Layer
from snc_client.policy import LayerPolicy
from snc_client.precision import SMALLEST_NORMAL
from snc_service.wire import absent

FIRST_ROUNDS = 40  # the first sigma is the reference of the whole run
# Numbers that the first certificates sum at a time. Later ones come in turns, a few at a step.
AT_ONCE = 1 << 24
MOST_UNSOUND = 3  # rows
GONE = "sharded, and not measured any more: a rank gives no share of it, or another one"


class ShardedGroup:
    """L sharded layers, on one device here; the interface of `DeviceGroup`, and `taking_part`.

    Every process of a layer makes one measurement at each step that the counter says, whatever lies
    on it: processes wait for each other. What is measured, certified and written follows from sums
    alone, so it is the same everywhere. A process that cannot give its share says so in its place,
    and nobody measures or writes that layer at that step.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        indices: Sequence[int],
        device: torch.device,
        roll_call: RollCall | None,
        gradients: GradientSums | None,
        *,
        certify_every: int | None,
        strict: bool,
        metrics: Sequence[str],
        steps_of: torch.optim.Optimizer | None,
    ) -> None:
        self.indices, self.device = list(indices), device
        self.gone: dict[str, str] = {}
        """Layers that could not be measured for some rows, and the reason."""
        self.scalars: dict[str, Any] = {}
        """Of the run as a whole, of the newest step."""
        self.guard: ShardedGuard | None = None
        """To be set before `register`."""
        self._metrics, self._steps_of = tuple(metrics), steps_of
        self._sums = ShardedSums(layers, device, roll_call, gradients)
        self.relist(layers)
        matrices = [layer.shard() for layer in layers]
        self._gathered = [is_gathered(x) for x in matrices]
        self._long = [x.shape[x.axis] for x in matrices]
        self._dtypes = [layer.weight().dtype for layer in layers]
        self._terms = to_device(
            [float(len(x.members)) for x in self._sums.agreed], device, torch.float32
        )
        self.thresholds = Thresholds([rms(layer) for layer in layers], device)
        self._outside = OutsideEnergy(len(layers), device)
        self._carried = ShardedBounds(len(layers), device) if strict else None
        self._certifies = certify_every is not None
        self._planner = StepPlanner(
            len(layers),
            certify_every=certify_every,
            strict=strict,
            max_overhead=None,
            idle_every=1,
        )
        self._actions = ShardedActions(self._dtypes, self._gathered, device)
        self._written: Mask = np.ones(len(layers), np.bool_)
        self._unsound = np.zeros(len(layers), np.int64)  # rows in a row without a measurement
        self._open: int | None = None  # the step whose measurement is due, until it is made
        self._row: DeviceRow | None = None

    @property
    def missing(self) -> frozenset[int]:
        """Return the indices, among all layers, of those in ``gone``."""
        places = zip(self.indices, self.layers, strict=True)
        return frozenset(i for i, layer in places if layer.name in self.gone)

    def relist(self, layers: Sequence[Layer]) -> None:
        """Look the same matrices up through these ``layers`` from now on."""
        self.layers = self._sums.layers = tuple(layers)

    def set_policy(self, policies: Sequence[LayerPolicy], step: int) -> None:
        """Put thresholds and actions in force, one per layer of the group, after ``step``."""
        self.thresholds.set([p.factor for p in policies], [p.unit for p in policies])
        self._actions.set(policies)
        self._planner.restart(step)

    def restart(self, step: int) -> None:
        """Treat every layer as active until a row of a step after ``step`` has arrived."""
        self._planner.restart(step)

    @torch.no_grad()
    def register(self) -> DeviceRow:
        """Return a first measurement, with a certificate of each layer unless there are none."""
        calls = [*[[]] * (FIRST_ROUNDS - 1), *self._chunks()]
        try:
            row = self._sums.together("start", calls, lambda: self._registered(calls))
        except BaseException:
            self.close()
            raise
        return self._nothing() if row is None else row

    def _registered(self, calls: Sequence[Sequence[int]]) -> DeviceRow:
        upper = torch.full_like(self.thresholds.value, math.nan)
        for proofs in calls:
            found = self._sums.measured(self._codes, proofs)
            self._certify(proofs, found, upper)
        estimates = found.estimates
        size = frobenius(found.sums)
        share = self._outside.share(estimates.sigma, estimates.captured, size)
        self._outside.note(estimates.sigma, share)
        self.thresholds.register(estimates.sigma)
        chosen = range(len(self.layers)) if self._certifies else ()
        nothing, none = (torch.full_like(upper, x) for x in (math.nan, math.inf))
        return self._row_of(estimates, found.sums, none, nothing, upper, chosen)

    @contextmanager
    def taking_part(self, step: int) -> Iterator[None]:
        """Begin ``step``: a measurement is due, at the end if the body has not called `step`.

        Signal handlers run after it: a process that left its step in the middle would not learn
        what the others learn of it.
        """
        with signals_wait():
            self._open, self._row = step, None
            try:
                yield
            finally:  # the others wait, whatever has failed here
                if self._open is not None:
                    self.step(self._written, empty=True)

    @torch.no_grad()
    def step(self, written: Mask, *, empty: bool = False) -> DeviceRow:
        """Measure all layers, certify those whose turn it is, and hold those ``written``, bool [L].

        A second call at one step returns the row of the first. ``empty``: give no share.
        """
        if self._row is not None:
            return self._row
        assert self._open is not None, "within taking_part()"
        number, self._open = self._open, None
        self._written = written
        self._row, self.scalars = self._nothing(), {}  # should it fail
        proofs = [] if self._sums.over else self._due(number)
        row = self._sums.together(
            f"step {number}", [proofs], lambda: self._measured(number, written, proofs, empty=empty)
        )
        if row is not None:
            self._row = row
        return self._row

    def _measured(
        self, number: int, written: Mask, proofs: Sequence[int], *, empty: bool
    ) -> DeviceRow:
        codes, vectors = partial(self._codes, number, written), self._sums.power.blocks()
        found = self._sums.measured(codes, proofs, self._more, absent=empty)
        if found.grad_norm is not None:
            self.scalars = {"grad_norm": found.grad_norm}
        sigma, captured = found.estimates.sigma, found.estimates.captured
        share = self._outside.share(sigma, captured, frobenius(found.sums))
        rise = self._outside.rise(sigma, share)
        residual = torch.where(rise > SUDDEN, sigma, found.estimates.residual)
        self._outside.note(sigma, share)
        self.thresholds.register(sigma)
        upper = torch.full_like(sigma, math.nan)
        if self._carried is not None:
            squares = torch.stack([x.values["squares"][MOVED] for x in found.sums]).float()
            rest = [i for i in self._actions.held if i not in proofs]
            upper = self._carried.bounds(rest, squares, self._terms)
        self._certify(proofs, found, upper)
        divisor = upper
        if self._carried is None:
            # PER_LAG is that of residuals after four iterations; here a step makes one.
            likely = presumed(sigma, residual, rise, per_lag=0.0)
            divisor = torch.where(upper.isfinite(), upper, likely)
        divisor = torch.where(sigma.isfinite(), divisor, math.nan)
        scale, clipped = self._actions.act(
            written, proofs, found, divisor, upper, self.thresholds.value
        )
        self._outside.acted(scale, clipped)
        judged = self._judged(found, scale, vectors)
        residual = torch.where(found.sound, residual, NO_SHARE)
        estimates = Estimates(sigma, residual, captured)
        threshold = self.thresholds.value
        row = self._row_of(estimates, found.sums, threshold, scale, upper, proofs)
        return row.with_metrics(judged)

    def _judged(self, found: Found, scale: Tensor, before: Sequence[Tensor]) -> dict[str, Tensor]:
        """Let the guard, if any, undo the step, and the iteration from vectors ``before`` too."""
        if self.guard is None:
            return {}
        squares = torch.stack([x.values["squares"] for x in found.sums], 1)
        strain, said = self.guard.judge(
            found.estimates.sigma,
            self.thresholds.value,
            scale,
            self.thresholds.reference,
            self._actions.held,
            update=squares[UPDATE].sqrt().float(),
            frobenius=squares[FROBENIUS].sqrt().float(),
            known=found.sound.all() & (squares[NO_UPDATE] == 0).all(),
        )
        self._sums.power.restore(before, self.guard.undone)
        self.scalars.update(said)
        return {GUARD_METRIC: strain}

    def learn(self, row: LayerRow) -> None:
        """Update the plans of the next steps with a row that has arrived, of all layers."""
        here = LayerRow(row.step, row.metrics, row.values[:, self.indices], {}, row.time)
        self._planner.learn(here)
        self._unsound = np.where(absent(here.metric("sigma")), self._unsound + 1, 0)
        for i in np.flatnonzero(self._unsound == MOST_UNSOUND):
            name = self.layers[i].name
            self.gone.setdefault(name, GONE)
            if self.guard is not None:
                self.guard.lose(name)

    def hurry(self, late: Mask, lost: Mask) -> None:
        """Refill the vectors of layers that have leapt, bool [L] on the host; see `DeviceGroup`."""
        again = [i for i, both in enumerate((late & lost).tolist()) if both]
        if again:
            fresh = to_device([True] * len(again), self.device, torch.bool)
            self._sums.power.refill_(fresh, again)

    def state(self) -> list[dict[str, Any]]:
        """Return the warm state of each layer, as `DeviceGroup` does; equal on all processes."""
        state = self._sums.power.state_dict()
        columns = zip(self.thresholds.reference, state["blocks"], state["steps"], strict=True)
        return [{"reference": r, "block": v, "iterations": n} for r, v, n in columns]

    @torch.no_grad()
    def load(self, states: Sequence[Any]) -> None:
        """Continue from ``states``, one per layer or None, equal on all processes.

        The number of processes that wrote them does not matter. Vectors of another length, as those
        of a whole matrix may be, are not used. All processes must call it: where one alone does,
        none measures these layers any more.
        """
        reference = list(self.thresholds.reference.unbind())
        for i, state in enumerate(states):
            if state is not None:
                reference[i] = state["reference"].to(reference[i])
                self._sums.power.load_block(i, state.get("block"))
        self.thresholds.restore(torch.stack(reference))
        self._planner.restart(-1)
        self._sums.together("load", [()] * FIRST_ROUNDS, self._iterated)

    def _iterated(self) -> None:
        for _ in range(FIRST_ROUNDS):
            self._sums.measured(self._codes, ())

    def close(self) -> None:
        """Take no part any more; the other processes go on without these layers."""
        self._sums.close()

    def _due(self, number: int) -> list[int]:
        """Return the layers to be certified at this step, the same on all processes."""
        plan = self._planner.plan(number, self._actions.held, all_gradients=False)
        assert plan is not None, "sharded layers are measured at every step"
        due = {i for i, turn in enumerate(plan.certified.tolist()) if turn}
        if self._carried is not None:
            due |= {i for i in self._actions.held if plan.pressing[i] or not self._carried.known(i)}
            due |= self._actions.normalized  # a carried bound is too loose to scale up by
        room = AT_ONCE
        for i in sorted(self._actions.capped):  # near their thresholds, as many as fit into one sum
            room -= math.prod(self._sums.agreed[i].proof)
            if plan.capped[i] and room >= 0:
                due.add(i)
        return sorted(due)

    def _chunks(self) -> list[list[int]]:
        """Divide all layers into those certified at a time; one chunk at least."""
        chunks: list[list[int]] = [[]]
        size = 0
        for i, known in enumerate(self._sums.agreed if self._certifies else ()):
            more = math.prod(known.proof)
            if chunks[-1] and size + more > AT_ONCE:
                chunks.append([])
                size = 0
            chunks[-1].append(i)
            size += more
        return chunks

    def _codes(self, number: int = 0, written: Mask | None = None) -> Tensor:
        """Return what must be equal on all processes: step, threshold, action; int64 [2, L]."""
        bits = self.thresholds.value.view(torch.int32).to(torch.int64)
        lists = (self._actions.held, self._actions.normalized, self._actions.capped)
        actions = np.zeros(len(self.layers), np.int64) + (0 if written is None else written)
        for k, which in enumerate(lists, 1):
            actions[list(which)] += 2**k
        more = to_device(actions.tolist(), self.device, torch.int64)
        return torch.stack([bits + number, bits * 7 + 3 * number + more])

    def _more(self) -> list[Extras]:
        """Return what else is summed of each layer."""
        found = extras(self.layers, self._metrics, self._steps_of)
        if self.guard is not None:
            each = zip(found, self.guard.shares(), strict=True)
            found = [replace(x, update=None, stepped=square) for x, square in each]
        if self._carried is None:
            return found
        moved = (self._carried.moved(i, layer.shard()) for i, layer in enumerate(self.layers))
        return [replace(x, moved=square) for x, square in zip(found, moved, strict=True)]

    def _certify(self, proofs: Sequence[int], found: Found, upper: Tensor) -> None:
        for i in proofs:
            sigma = found.estimates.sigma[i]
            upper[i].copy_(self._bound(i, found.sums[i], sigma))
            if self._carried is not None and i in self._actions.held:
                self._carried.certified(i, found.matrices[i], upper[i])

    def _bound(self, i: int, sums: LayerSums, sigma: Tensor) -> Tensor:
        """Return a certified bound of layer ``i``, 0-d; NaN where a process gave no share."""
        total = sums.values["proof"].double()
        if self._gathered[i]:
            found = sigma_upper(total, sigma)
        else:
            torn = sums.values["torn"].double()
            found = upper_of_gram(total + torn.mT @ torn, self._long[i], sigma)
        if self._dtypes[i] == torch.float64:  # squares of entries below 2^-537 are lost
            found = found.clamp(min=SMALLEST_NORMAL)
        return torch.where(sums.values["lost"][0] == 0, found, math.nan)

    def _nothing(self) -> DeviceRow:
        """Return a row in which no layer was measured."""
        nan, inf = (torch.full_like(self.thresholds.value, x) for x in (math.nan, math.inf))
        row = DeviceRow(
            device=self.device,
            layers=self.indices,
            certified=[],
            sigma=nan,
            threshold=inf,
            scale=nan,
            residual=-inf,
            sigma_upper=nan,
        )
        more = self._metrics if self.guard is None else (*self._metrics, GUARD_METRIC)
        return row.with_metrics({name: nan for name in more})

    def _row_of(
        self,
        found: Estimates,
        sums: Sequence[LayerSums],
        threshold: Tensor,
        scale: Tensor,
        upper: Tensor,
        certified: Collection[int],
    ) -> DeviceRow:
        row = DeviceRow(
            device=self.device,
            layers=self.indices,
            certified=[self.indices[i] for i in certified],
            sigma=found.sigma,
            threshold=threshold,
            scale=scale,
            residual=found.residual,
            sigma_upper=upper,
        )
        norms = norms_of(sums, found.sigma)
        return row.with_metrics({name: norms[name] for name in self._metrics})
