"""All layers of a model: measured and held, device by device, and their rows on the host."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snc_client.bounds import certifiable
from snc_client.callback.guard.guard import Guard
from snc_client.callback.model.distributed import several_ranks
from snc_client.callback.model.master_weights import Masters
from snc_client.callback.monitor.device_group import IDLE_LAG, DeviceGroup
from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.monitor.write_tracker import WriteTracker
from snc_client.callback.readback.bound_provenance import Origins
from snc_client.callback.readback.in_flight import InFlight, Measured
from snc_client.callback.readback.latest import METRICS, NOT_MEASURED, ORIGIN_METRICS, Latest
from snc_client.callback.readback.pending_row import Row
from snc_client.callback.schedule.certify_schedule import CertifySchedule
from snc_client.callback.schedule.measure_schedule import Cadence, Mask, turns
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator import LAG
from snc_client.layers import Layer
from snc_client.policy import LayerPolicy

log = logging.getLogger("snc")

# Vectors per layer: enough for singular values that a threshold crowds together / to watch.
HELD_BLOCK, WATCHED_BLOCK = 16, 8
# Half of what lies between an active layer and its threshold: a fall of all thresholds by more than
# that makes every layer count as active until it was measured again.
FALL = 0.95
VANISHING = 1e-7  # of the weight's norm: where the service's rule begins to count


class LayerMonitor:
    """What happens to L layers at a step, without a wait for their devices.

    Between steps live: the warm blocks, the reference sigmas, the thresholds (all on the devices),
    the rows still on their way to the host, and ``latest``, the newest that arrived.
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
    ) -> None:
        self.layers = tuple(layers)
        self._signals = signals
        self._guard = guard
        self._masters = masters
        self._device_metrics = (*METRICS, *signals.metrics, *(["guard"] if guard else []))
        self.metrics = (*self._device_metrics, *ORIGIN_METRICS)
        self._origins = Origins(len(layers))
        self._steps = None if signals.steps_of is None else WriteTracker(signals.steps_of)
        self.latest = Latest([layer.name for layer in layers], metrics=self.metrics)
        self.rows = InFlight(self._device_metrics)
        self._strict, self._closed = strict, False
        self._alone = not several_ranks()
        self._schedule = CertifySchedule(len(layers), certify_every) if certify_every else None
        self._idle_every = idle_every
        self.cadence = Cadence(len(layers), max_overhead)
        self._proofs = Cadence(len(layers), None)  # the same, of the bounds: strict goes by them
        self._held: set[int] = set()
        self.missing: frozenset[int] = frozenset()  # places of layers that could not be looked up
        self._stretch = self._known_stretch = 1.0
        self._groups = self._grouped()
        self.set_policy(policies, step=0)  # the registered row has no thresholds yet

    def set_policy(self, policies: Sequence[LayerPolicy], step: int) -> None:
        """Put thresholds and actions, one per layer, in force after the measurement of ``step``.

        Where that changes which layers are held, blocks of another size are drawn: the one wait for
        a device that a policy can cause.
        """
        self._policies, self._policy_step = tuple(policies), step
        self._stops = np.array([p.action == "stop" for p in policies], np.bool_)
        self._take_all_for_active()
        held = {i for i, p in enumerate(policies) if p.action in ("rescale", "cap")}
        if held != self._held:
            self._held = held
            self._regroup(self._warm())
        for group in self._groups:
            group.set_policy([self._policies[i] for i in group.indices])

    def stretch(self, factor: float, step: int) -> None:
        """Multiply all thresholds by ``factor`` after the measurement of ``step``; no wait."""
        if factor == self._stretch:
            return
        self._stretch = factor
        for group in self._groups:
            group.thresholds.stretch(factor)
        if factor < FALL * self._known_stretch:
            self._policy_step = step
            self._take_all_for_active()
        self._known_stretch = max(factor, self._known_stretch)

    def relist(self, layers: Sequence[Layer], policies: Sequence[LayerPolicy], step: int) -> None:
        """Go on with ``layers`` (those known so far at their places, then new ones) after ``step``.

        What is warm stays warm. New layers are measured until their sigma is a reference.
        """
        more = len(layers) - len(self.layers)
        warm = self._warm()
        self.layers = tuple(layers)
        self.latest = self.latest.wider([layer.name for layer in layers])
        self.rows.widen(more)
        if more:
            self._origins = self._origins.wider(more)
            self.cadence, self._proofs = self.cadence.wider(more), self._proofs.wider(more)
            if self._schedule:
                self._schedule = self._schedule.wider(more)
        self.set_policy(policies, step)
        self._regroup(warm)

    def uncertifiable(self) -> list[str]:
        """Return the names of held layers whose bound nothing certifies yet."""
        held = (x for i, x in enumerate(self.layers) if i in self._held and i not in self.missing)
        return [layer.name for layer in held if not certifiable(layer.operator())]

    @torch.no_grad()
    def register(self, step: int) -> None:
        """Measure every layer before the training moves it: its first sigma is its reference."""
        self._signals.register([layer for group in self._groups for layer in group.layers])
        values = [self._registered(group) for group in self._groups]
        self._note()
        if self._guard is not None:
            values = [_below(x, torch.full_like(x.rows[0], NOT_MEASURED)) for x in values]
        self.rows.ship(step, self._stops, values, {})

    @torch.no_grad()
    def measure(self, step: int, scalars: Mapping[str, Any]) -> Row | None:
        """Measure, certify, act, and send one row on its way.

        Returns None if no layer is due, or no buffer was free for the row. If a layer was moved to
        another device, replaced or removed, the groups are formed again and the step is repeated
        once. Any other error is raised at once, out-of-memory among them.
        """
        due, in_turn = self.cadence.due(step)
        if self._strict:
            due[sorted(self._held)] = True
        if not due.any():
            return None
        certify = self._schedule.due(due) if self._schedule else []
        due[certify] = True
        self._signals.whole = in_turn and "grad_norm" not in scalars
        self._signals.known = self._guard.look() if self._guard is not None else {}
        try:
            values = self._step(step, due, certify)
        except (LookupError, RuntimeError) as error:
            if not self._can_mend(error):
                raise
            self._regroup(self._warm())
            values = self._step(step, due, certify)
        self._note()
        told: dict[str, Any] = {}
        if self._guard is not None:
            values, told = self._guarded(self._guard, values)
        return self.rows.ship(
            step, self._stops, values, {**self._signals.scalars, **scalars, **told}
        )

    def arrived(self) -> Iterator[tuple[Row, Latest]]:
        """Yield the rows that have reached the host, oldest first.

        Each comes with what was measured at its step; ``latest`` goes on to hold the others too.
        Among several ranks a row is taken when three are on their way, whenever it arrived: what
        follows from it (which layers are measured, certified, capped) has to follow at one step on
        all ranks, or their weights would drift apart. A device that lags by more is waited for, and
        has two steps to go on with meanwhile; alone, nothing is waited for.
        """
        for row in self.rows.taken(at_once=self._ready_is_due()):
            values = self._origins.completed(row.step, row.take(len(self.layers)), row.certified)
            fresh = Latest(
                self.latest.names,
                row.step,
                values,
                row.scalars,
                metrics=self.metrics,
                certified=row.certified,
            )
            self.latest = self.latest.then(fresh, gone=self.missing)
            self._learn(fresh)
            yield row, fresh

    def _ready_is_due(self) -> bool:
        free = all(reading_is_free(group.device) for group in self._groups)
        return self._alone or self._closed or free

    def close(self) -> None:
        """Take off what was put on the optimizer; rows are taken as they arrive from now on."""
        self._closed = True
        if self._steps is not None:
            self._steps.close()

    @property
    def pending(self) -> bool:
        """Return whether rows are still on their way."""
        return bool(self.rows)

    def forget(self) -> None:
        """Drop the rows on their way: they belong to a training that did not happen."""
        self.rows.drop()
        self._origins = Origins(len(self.layers))
        self._policy_step = -1
        self._take_all_for_active()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what is warm of each layer, by name, on the CPU. It waits for the devices."""
        return {
            name: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
            for name, state in self._warm().items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from ``state``; layers that it lacks start cold."""
        self._regroup(state)

    def _take_all_for_active(self) -> None:
        self._known_stretch = self._stretch
        self.cadence.reset()
        self._proofs.reset()

    def _turns(self, devices: Iterable[torch.device]) -> int:
        """Return into how many turns idle layers are divided.

        A GPU measures all of them in one launch, sooner than the host could choose.
        """
        if self._idle_every is not None:
            return turns(len(self.layers), self._idle_every)
        return turns(len(self.layers)) if all(map(reading_is_free, devices)) else 1

    def _warm(self) -> dict[str, dict[str, Any]]:
        return {
            layer.name: state
            for group in self._groups
            for layer, state in zip(group.layers, group.state(), strict=True)
        }

    def _regroup(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Form the groups as devices and policy are now, and continue from ``state``."""
        self._groups = self._grouped()
        for group in self._groups:
            group.set_policy([self._policies[i] for i in group.indices])
            group.thresholds.stretch(self._stretch)
            group.load([state.get(layer.name) for layer in group.layers])

    def _step(self, step: int, due: Mask, certify: Sequence[int]) -> list[Measured]:
        values = []
        pressing = self._proofs.urgent(step)
        for device in {group.device for group in self._groups}:
            self.rows.start(device)
        every = [i for group in self._groups for i in group.indices]
        self._masters.refresh(self.layers[i] for i in every if i in self._held)
        self._signals.begin([self.layers[i] for i in every if due[i]])
        for group in self._groups:
            places = range(len(group.indices))
            measured = [k for k in places if due[group.indices[k]]]
            certified = [k for k in measured if group.indices[k] in certify]
            capped = [k for k in measured if self.cadence.active[group.indices[k]]]
            if measured:
                pressed = [k for k in measured if pressing[group.indices[k]]]
                active = self.cadence.active
                in_turns = self.cadence.turns * self.cadence.pace > 1
                idle = [k for k in measured if in_turns and not active[group.indices[k]]]
                rows, proven = group.step(
                    measured,
                    certify=certified,
                    cap=capped,
                    pressing=pressed,
                    idle=idle,
                    drift=self._drift(group.layers, measured),
                )
                indices = [group.indices[k] for k in measured]
                found = [group.indices[k] for k in proven]
                values.append(self._measured(group, indices, rows, found))
        return values

    def _registered(self, group: DeviceGroup) -> Measured:
        rows, certified = group.register(certify=self._schedule is not None)
        found = [group.indices[k] for k in certified]
        return self._measured(group, group.indices, rows, found)

    def _note(self) -> None:
        if self._steps is not None:
            self._steps.note(x.parameter() for group in self._groups for x in group.layers)

    def _drift(self, layers: Sequence[Layer], measured: Sequence[int]) -> dict[int, Tensor]:
        if self._steps is None:
            return {}
        norms = self._signals.update_norms
        known = [k for k in measured if layers[k].name in norms]
        return {k: norms[layers[k].name] for k in known if self._steps.moved(layers[k].parameter())}

    def _measured(
        self,
        group: DeviceGroup,
        indices: Sequence[int],
        rows: Tensor,
        certified: Sequence[int] = (),
    ) -> Measured:
        """Put the signals of these layers below what the group found of them."""
        layers = [self.layers[i] for i in indices]
        signals = self._signals.rows(layers, group.device, rows[0])
        return Measured(group.device, indices, torch.cat([rows, signals]), certified)

    def _guarded(
        self, guard: Guard, values: Sequence[Measured]
    ) -> tuple[list[Measured], dict[str, Any]]:
        """Let the guard judge the step, and put its metric below what was measured."""
        columns = torch.full((4, len(self.layers)), math.nan, device=guard.device)
        for measured in values:
            places = to_device(measured.indices, measured.device, torch.int64)
            columns[:3].index_copy_(1, places, measured.rows[:3])
        for group in self._groups:
            places = to_device(group.indices, group.device, torch.int64)
            columns[3].index_copy_(0, places, group.thresholds.reference)
        sigma, threshold, scale, reference = columns.unbind()
        strain, told = guard.settle(sigma, threshold, scale, reference, sorted(self._held))
        at = [to_device(x.indices, x.device, torch.int64) for x in values]
        return [_below(x, strain[places]) for x, places in zip(values, at, strict=True)], told

    def _learn(self, latest: Latest) -> None:
        """Draw conclusions for the next steps from a row that has arrived."""
        sigma, threshold = latest.row("sigma"), latest.row("threshold")
        if self._schedule:
            self._schedule.saw(latest.step, sigma, threshold)
        if latest.step > self._policy_step:
            self.cadence.saw(latest.step, sigma, threshold, self._unusual(latest))
            if self._strict:
                self._proofs.saw(latest.step, latest.row("sigma_upper"), threshold)
        late = latest.row("residual") > LAG * sigma
        if late.any():
            for group in self._groups:
                group.power.hurry(k for k, i in enumerate(group.indices) if late[i])

    def _unusual(self, latest: Latest) -> Mask:
        """Return which blocks lag, and which gradients are nothing beside their weights."""
        found: Mask = latest.row("residual") > IDLE_LAG * latest.row("sigma")
        if {"grad_norm", "frobenius"} <= set(self.metrics):
            found |= latest.row("grad_norm") < VANISHING * latest.row("frobenius")
        return found  # False where one of the two is absent, a NaN

    def _can_mend(self, error: LookupError | RuntimeError) -> bool:
        """Return whether looking the weights up again can help: they are not what they were."""
        if isinstance(error, LookupError):
            return True
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return False
        return any(identity(self.layers[i]) != seen for i, seen in self._identities.items())

    def _grouped(self) -> list[DeviceGroup]:
        devices: dict[int, torch.device] = {}
        self._identities: dict[int, Hashable] = {}
        for i, layer in enumerate(self.layers):
            try:
                devices[i] = layer.weight().device
                self._identities[i] = identity(layer)
                if devices[i].type == "meta":
                    raise LookupError(f"layer {layer.name!r} must hold numbers, it is on meta")
            except LookupError as error:
                devices.pop(i, None)
                if i not in self.missing:
                    log.warning("snc: not measured any more: %s", error)
        self.missing = frozenset(range(len(self.layers))) - devices.keys()
        self.cadence.turns = self._turns(devices.values())
        # What is measured once in several steps needs as many vectors as what is held.
        watched = WATCHED_BLOCK if self.cadence.turns == 1 else HELD_BLOCK
        places: dict[tuple[torch.device, int], list[int]] = {}
        for i, device in devices.items():
            block = HELD_BLOCK if i in self._held else watched
            places.setdefault((device, block), []).append(i)
        return [
            DeviceGroup(
                [self.layers[i] for i in indices],
                indices,
                device,
                block=block,
                masters=self._masters,
                strict=self._strict,
                stepped=self._steps is not None,
            )
            for (device, block), indices in places.items()
        ]


def _below(measured: Measured, row: Tensor) -> Measured:
    """Return it with one more row, [l]."""
    return measured._replace(rows=torch.cat([measured.rows, row.unsqueeze(0)]))


def identity(layer: Layer) -> Hashable:
    """Return what stays the same while a layer's weight is the same tensor; None if it is gone."""
    try:
        weight, parameter = layer.weight(), layer.parameter()
    except LookupError:
        return None
    return weight.device, weight.dtype, type(weight), None if parameter is None else id(parameter)
