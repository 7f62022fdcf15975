"""LayerMonitor: measures and holds all layers of a model, device by device."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snc_client.callback.guard.guard import Guard
from snc_client.callback.guard.judged_rows import judged_rows
from snc_client.callback.guard.sharded_guard import ShardedGuard
from snc_client.callback.model.distributed import several_ranks
from snc_client.callback.model.master_weights import Masters
from snc_client.callback.model.saved_state import by_name
from snc_client.callback.monitor.device_group import DeviceGroup
from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.monitor.sharded.sharded_group import ShardedGroup
from snc_client.callback.monitor.step_plan import StepPlan
from snc_client.callback.monitor.step_planner import StepPlanner
from snc_client.callback.monitor.undone_scales import UndoneScales
from snc_client.callback.monitor.weight_locations import Located, locate
from snc_client.callback.monitor.write_tracker import WriteTracker
from snc_client.callback.readback.bound_provenance import BoundProvenance
from snc_client.callback.readback.device_row import DeviceRow
from snc_client.callback.readback.in_flight import InFlight
from snc_client.callback.readback.latest import Latest
from snc_client.callback.readback.metrics import (
    AGE_METRICS,
    GUARD_METRIC,
    NOT_MEASURED,
    device_metrics,
)
from snc_client.callback.readback.pending_row import PendingRow
from snc_client.callback.schedule.measure_schedule import Cadence
from snc_client.devices import reading_is_free
from snc_client.estimator import LAG
from snc_client.layer_row import LayerRow, Mask
from snc_client.layers import Layer
from snc_client.policy import HOLDING, LayerPolicy

# Vectors of a warm block: held layers need more, as a threshold pushes singular values together.
HELD_BLOCK, WATCHED_BLOCK = 16, 8
# A layer is active from 0.9 of its threshold on. If all thresholds fall by more than half of that
# distance, every layer counts as active until it is measured again.
FALL = 0.95


class LayerMonitor:
    """Measures and holds L layers at each step, without a wait for their devices.

    Kept between steps: warm blocks, reference sigmas and thresholds on the devices; the rows under
    way to the host; ``latest``, the newest values that have arrived.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        policies: Sequence[LayerPolicy],
        *,
        certify_every: int | None,
        strict: bool,
        max_overhead: float | None,
        signals: NormSignals,
        masters: Masters,
        guard: Guard | None = None,
        idle_every: int | None = None,
        sharded: ShardedGroup | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self._shards = [] if sharded is None else [sharded]
        if sharded is not None and isinstance(guard, ShardedGuard):
            sharded.guard, guard = guard, None
        self._signals = signals
        self._guard = guard
        self._masters = masters
        measured = device_metrics(signals.metrics, guarded=signals.guarded)
        self.metrics = (*measured, *AGE_METRICS)
        self._provenance = BoundProvenance(len(layers))
        self._writes = None if signals.steps_of is None else WriteTracker(signals.steps_of)
        self.latest = Latest([layer.name for layer in layers], metrics=self.metrics)
        self.rows = InFlight(measured)
        self._strict, self._closed = strict, False
        self._planner = StepPlanner(
            len(layers),
            certify_every=certify_every,
            strict=strict,
            max_overhead=max_overhead,
            idle_every=idle_every,
            apart=[i for each in self._shards for i in each.indices],
        )
        self._undone = UndoneScales(self.layers, masters)
        self._held: set[int] = set()
        self._certify_later = np.zeros(len(layers), np.bool_)  # at the step of their optimizer
        self._located = Located({}, {}, frozenset())
        self._stretch = self._known_stretch = 1.0
        self._groups = self._grouped()
        self.set_policy(policies, step=0)  # thresholds take effect after the registered row

    @property
    def cadence(self) -> Cadence:
        """Return how often layers are measured."""
        return self._planner.cadence

    @property
    def missing(self) -> frozenset[int]:
        """Return the indices of layers that could not be looked up, or measured by all ranks."""
        return self._located.missing.union(*(each.missing for each in self._shards))

    def set_policy(self, policies: Sequence[LayerPolicy], step: int) -> None:
        """Put thresholds and actions, one per layer, in force after the measurement of ``step``.

        Where the set of held layers changes, warm blocks of another size are made. Only then does
        the host wait for a device.
        """
        self._policies = tuple(policies)
        self._stops = np.array([p.action == "stop" for p in policies], np.bool_)
        self._known_stretch = self._stretch
        self._planner.restart(step)
        held = {i for i, p in enumerate(policies) if p.action in HOLDING}
        if held != self._held:
            self._held = held
            self._regroup(self._warm())
        for group in self._groups:
            group.set_policy([self._policies[i] for i in group.indices])
        for each in self._shards:
            each.set_policy([self._policies[i] for i in each.indices], step)

    def stretch(self, factor: float, step: int) -> None:
        """Multiply all thresholds by ``factor`` after the measurement of ``step``; no wait."""
        if factor == self._stretch:
            return
        self._stretch = factor
        for group in self._all_groups:
            group.thresholds.stretch(factor)
        if factor < FALL * self._known_stretch:
            self._known_stretch = factor
            self._planner.restart(step)
            for each in self._shards:
                each.restart(step)
        self._known_stretch = max(factor, self._known_stretch)

    def relist(
        self,
        layers: Sequence[Layer],
        policies: Sequence[LayerPolicy],
        step: int,
        resized: Collection[str] = (),
    ) -> bool:
        """Replace the layers after ``step``: known ones keep their indices, new ones follow.

        Warm state is kept. New and exchanged weights are iterated on until sigma is right, and
        certified at the next step. References stay, except of ``resized`` layers. Returns whether
        a weight is new, exchanged or gone.
        """
        more = len(layers) - len(self.layers)
        warm = self._warm()
        exchanged = {i for i in self._located.exchanged(layers) if i < len(self.layers)}
        for i in exchanged:
            name = layers[i].name
            kept = warm.pop(name, {}).get("reference")
            if kept is not None and name not in resized:
                warm[name] = {"reference": kept}
        self._provenance.forget(exchanged)
        self.layers = tuple(layers)
        for each in self._shards:
            each.relist([layers[i] for i in each.indices])
        self._undone = UndoneScales(self.layers, self._masters)
        self.latest = self.latest.wider([layer.name for layer in layers])
        self.rows.widen(more)
        self._certify_later = np.pad(self._certify_later, (0, more))
        if more:
            self._provenance = self._provenance.wider(more)
            self._planner.widen(more)
        self.set_policy(policies, step)
        self._regroup(warm)
        self._planner.renew({*exchanged, *range(len(layers) - more, len(layers))} - self.missing)
        return bool(more or exchanged)

    @torch.no_grad()
    def register(self, step: int) -> None:
        """Measure every layer before the training changes it: the first sigma is the reference."""
        self._signals.register([layer for group in self._groups for layer in group.layers])
        certify = self._planner.certifies
        rows = [self._with_norms(group.register(certify=certify)) for group in self._groups]
        rows += [each.register() for each in self._shards]
        self._note_writes()
        if self._signals.guarded:
            rows = [
                row.with_metrics({GUARD_METRIC: torch.full_like(row.sigma, NOT_MEASURED)})
                for row in rows
            ]
        self.rows.ship(step, self._stops, rows, {})

    @torch.no_grad()
    def measure(
        self, step: int, scalars: Mapping[str, Any], others: Mask | None = None
    ) -> PendingRow | None:
        """Measure, certify and act, and start the copy of the row to the host.

        Returns None if no layer is due, or no buffer was free for the row. If a layer was moved to
        another device, replaced or removed, the groups are formed again and the step is repeated
        once. Any other error is raised at once, out-of-memory among them. ``others`` ([L] bool) are
        the layers of other optimizers: `hold` measures them after their own step.
        """
        plan = self._planner.plan(step, self._held, all_gradients="grad_norm" not in scalars)
        if plan is None:
            return None
        if others is not None:
            self._certify_later = plan.certified & others
            plan = replace(plan, measured=plan.measured & ~others, written=~others)
        known = self._guard.look() if self._guard is not None else {}
        rows = self._repeated(plan, known)
        judged: dict[str, Any] = {}
        if self._guard is not None:
            references = [(x.indices, x.thresholds.reference) for x in self._groups]
            held = sorted(self._held)
            rows, judged = judged_rows(self._guard, rows, references, len(self.layers), held)
        of_shards = {k: v for each in self._shards for k, v in each.scalars.items()}
        scalars = {**self._signals.scalars, **of_shards, **scalars, **judged}
        return self.rows.ship(step, self._stops, rows, scalars)

    @torch.no_grad()
    def hold(self, step: int, layers: Mask) -> None:
        """Measure and hold ``layers`` ([L] bool), whose own optimizer has just stepped.

        Their values join the row of ``step`` if the host has not taken it yet.
        """
        certified = self._certify_later
        self._certify_later = certified & ~layers
        self.rows.extend(step, self._repeated(self._planner.plan_of(step, layers, certified), {}))

    def _repeated(
        self, plan: StepPlan, known: Mapping[str, Mapping[str, Tensor]]
    ) -> list[DeviceRow]:
        """Return the rows of ``plan``; after an error, look up changed weights and repeat once."""
        try:
            rows = self._step(plan, known)
        except (LookupError, RuntimeError) as error:
            if not self._located.explains(error, self.layers):
                raise
            self._regroup(self._warm())
            rows = self._step(plan, known)
        self._note_writes()
        return rows

    def arrived(self) -> Iterator[tuple[PendingRow, LayerRow]]:
        """Yield the rows that have reached the host, oldest first.

        ``latest`` also has the values of layers that a row did not measure. On several ranks a row
        is taken when three are under way, whenever it arrived: which layers are measured, certified
        and capped follows from it, and must be the same on all ranks at each step, or their weights
        would diverge. There the host waits for a device that is more than three rows behind; on a
        single rank it never waits.
        """
        for pending in self.rows.taken(at_once=self._take_at_once()):
            row = self._provenance.completed(pending.take(len(self.layers)))
            self.latest = self.latest.then(row, gone=self.missing)
            self._learn(row)
            yield pending, row

    def _take_at_once(self) -> bool:
        free = all(reading_is_free(group.device) for group in self._all_groups)
        return free or self._closed or not several_ranks()

    def close(self) -> None:
        """Remove the hook from the optimizer; from now on rows are taken as they arrive."""
        self._closed = True
        for each in self._shards:
            each.close()
        if self._writes is not None:
            self._writes.close()

    @property
    def pending(self) -> bool:
        """Return whether rows are still under way."""
        return bool(self.rows)

    def forget(self) -> None:
        """Drop the rows under way: the training continues from another state."""
        self.rows.drop()
        self._provenance = BoundProvenance(len(self.layers))
        self._known_stretch = self._stretch
        self._planner.restart(-1)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the warm state of each layer, by name, on the CPU. It waits for the devices."""
        return {
            name: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
            for name, state in self._warm().items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from ``state``, by canonical names; layers that it lacks start cold.

        Names on one side only are logged: a reference that is not found would be measured anew.
        """
        known = by_name(state, self.layers)
        self._regroup(known)
        for each in self._shards:
            each.load([known.get(layer.name) for layer in each.layers])

    @contextmanager
    def taking_part(self, step: int) -> Iterator[None]:
        """Begin ``step``; other ranks get this one's share of sharded layers, whatever happens."""
        with ExitStack() as stack:
            for each in self._shards:
                stack.enter_context(each.taking_part(step))
            yield

    def _step(self, plan: StepPlan, known: Mapping[str, Mapping[str, Tensor]]) -> list[DeviceRow]:
        for device in {group.device for group in self._all_groups}:
            self.rows.start(device)
        rows = [each.step(plan.written[each.indices]) for each in self._shards]
        every = [i for group in self._groups for i in group.indices]
        self._masters.refresh(self.layers[i] for i in every if i in self._held)
        measured = [self.layers[i] for i in every if plan.measured[i]]
        self._signals.begin(measured, known=known, all_gradients=plan.all_gradients)
        norms = self._signals.update_norms
        for group in self._groups:
            here = plan.of(group.indices)
            if here.measured.any():
                layers = [self.layers[i] for i in group.indices if plan.measured[i]]
                sizes = self._signals.frobenius(layers, group.device)
                steps = {} if self._writes is None else self._writes.norms(group.layers, norms)
                row = group.step(here, steps, sizes)
                rows.append(self._with_norms(row))
        return rows

    def _with_norms(self, row: DeviceRow) -> DeviceRow:
        layers = [self.layers[i] for i in row.layers]
        return row.with_metrics(self._signals.of(layers, row.device, row.sigma))

    def _note_writes(self) -> None:
        if self._writes is not None:
            self._writes.note(x.parameter() for group in self._groups for x in group.layers)

    def _learn(self, row: LayerRow) -> None:
        """Update the plans of the next steps with a row that has arrived."""
        self._planner.learn(row)
        self._undone.saw(row)
        for each in self._shards:
            each.learn(row)
        late = row.metric("residual") > LAG * row.metric("sigma")
        if late.any():
            lost = row.metric("residual") >= row.metric("sigma")
            for group in self._all_groups:
                group.hurry(late[group.indices], lost[group.indices])

    @property
    def _all_groups(self) -> list[DeviceGroup | ShardedGroup]:
        return [*self._groups, *self._shards]

    def _warm(self) -> dict[str, dict[str, Any]]:
        return {
            layer.name: state
            for group in self._all_groups
            for layer, state in zip(group.layers, group.state(), strict=True)
        }

    def _regroup(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Form the groups for the present devices and policy, and continue from ``state``."""
        self._groups = self._grouped()
        for group in self._groups:
            group.set_policy([self._policies[i] for i in group.indices])
            group.thresholds.stretch(self._stretch)
            group.load([state.get(layer.name) for layer in group.layers])

    def _grouped(self) -> list[DeviceGroup]:
        self._located = locate(self.layers, self.missing)
        positions = [layer.positions for layer in self.layers]
        self._planner.set_turns(self._located.devices.values(), positions)
        places: dict[tuple[torch.device, int], list[int]] = {}
        for i, device in self._located.devices.items():
            if self.layers[i].sharded:
                continue
            # A layer that is not measured at every step needs as many vectors as one that is held.
            many = i in self._held or self._planner.rarely(i)
            block = HELD_BLOCK if many else WATCHED_BLOCK
            places.setdefault((device, block), []).append(i)
        return [
            DeviceGroup(
                [self.layers[i] for i in indices],
                indices,
                device,
                block=block,
                masters=self._masters,
                strict=self._strict,
                stepped=self._writes is not None,
            )
            for (device, block), indices in places.items()
        ]
