"""All layers of a model: measured and held, device by device, and their rows on the host."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snc_client.callback.group import Group
from snc_client.callback.readback import Readback
from snc_client.callback.reading import Latest
from snc_client.callback.row import Row, Scalars, parcel
from snc_client.callback.schedule import CertifySchedule
from snc_client.layers import Layer
from snc_client.policy import LayerPolicy

log = logging.getLogger("snc")

# A layer whose newest sigma reached this share of its threshold may breach at the next step.
ACTIVE = 0.9
# Beyond this a certificate needed its last resort: the block has lost the top direction.
LOST = 1.011


class Watch:
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
    ) -> None:
        self.layers = tuple(layers)
        self.latest = Latest([layer.name for layer in layers])
        self.lost_rows = 0  # measurements that found every buffer still in flight
        self._strict = strict
        self._schedule = CertifySchedule(len(layers), certify_every) if certify_every else None
        self._scalars = Scalars()
        self._readbacks: dict[torch.device, Readback] = {}
        self._rows: deque[Row] = deque()
        self._groups: list[Group] = []
        self.set_policy(policies, step=-1)
        self._groups = self._grouped()

    def set_policy(self, policies: Sequence[LayerPolicy], step: int) -> None:
        """Put thresholds and actions, one per layer, in force after the measurement of ``step``."""
        self._policies, self._policy_step = tuple(policies), step
        self._stops = np.array([p.action == "stop" for p in policies], np.bool_)
        self._held = {i for i, p in enumerate(policies) if p.action in ("rescale", "cap")}
        self._near = np.ones(len(policies), np.bool_)  # until a newer row says otherwise
        for group in self._groups:
            group.set_policy([policies[i] for i in group.indices])

    @torch.no_grad()
    def register(self, step: int) -> None:
        """Measure every layer before the training moves it: its first sigma is its reference."""
        self._ship(step, [(group, group.register()) for group in self._groups], {})

    @torch.no_grad()
    def measure(self, step: int, scalars: Mapping[str, Any]) -> Row | None:
        """Measure, certify, act, and send one row on its way; None if no buffer was free for it.

        Where a layer has moved to another device or is gone, the groups are formed anew, once.
        """
        certify = self._to_certify()
        try:
            values = self._step(certify)
        except (LookupError, RuntimeError):
            self.load_state_dict(self.state_dict())
            values = self._step(certify)
        return self._ship(step, values, scalars)

    def report(self, step: int, scalars: Mapping[str, Any]) -> bool:
        """Add scalars to the row of ``step`` unless it has arrived; return whether it took them."""
        row = self._rows[-1] if self._rows and self._rows[-1].step == step else None
        if row is None:
            return False
        numbers, tensors = self._scalars.sort(scalars)
        row.scalars.update(numbers)
        for device, named in tensors.items():
            readback = self._readback(device)
            if not readback.full():
                readback.start()
                row.parcels.append(parcel(readback, None, (), named))
        return True

    def arrived(self) -> Iterator[tuple[Row, Latest]]:
        """Yield the rows that have reached the host, oldest first; never waits."""
        while self._rows and self._rows[0].ready():
            row = self._rows.popleft()
            values = row.take(len(self.layers))
            self.latest = Latest(self.latest.names, row.step, values, row.scalars)
            self._learn(self.latest)
            yield row, self.latest

    @property
    def pending(self) -> bool:
        """Return whether rows are still on their way."""
        return bool(self._rows)

    def forget(self) -> None:
        """Drop the rows on their way: they belong to a training that did not happen."""
        self._rows.clear()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what is warm of each layer, by name, on the CPU. It waits for the devices."""
        return {
            layer.name: state
            for group in self._groups
            for layer, state in zip(group.layers, group.state(), strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Form the groups anew and continue from ``state``; layers that it lacks start cold."""
        self._groups = self._grouped()
        for group in self._groups:
            group.load([state.get(layer.name) for layer in group.layers])

    def _step(self, certify: set[int]) -> list[tuple[Group, Tensor]]:
        values = []
        for group in self._groups:
            self._readback(group.device).start()
            certified = [k for k, i in enumerate(group.indices) if i in certify]
            capped = [k for k, i in enumerate(group.indices) if self._near[i]]
            values.append((group, group.step(certify=certified, cap=capped)))
        return values

    def _ship(
        self, step: int, values: Sequence[tuple[Group, Tensor]], scalars: Mapping[str, Any]
    ) -> Row | None:
        numbers, tensors = self._scalars.sort(scalars)
        devices = {group.device for group, _ in values} | set(tensors)
        if any(self._readback(device).full() for device in devices):
            self.lost_rows += 1
            return None
        parcels = [
            parcel(self._readback(g.device), v, g.indices, tensors.pop(g.device, {}))
            for g, v in values
        ]
        parcels += [parcel(self._readback(d), None, (), named) for d, named in tensors.items()]
        row = Row(step, self._stops, numbers, parcels)
        self._rows.append(row)
        return row

    def _to_certify(self) -> set[int]:
        due = set(self._schedule.due()) if self._schedule else set()
        return due | self._held if self._strict else due

    def _learn(self, latest: Latest) -> None:
        """Draw conclusions for the next steps from a row that has arrived."""
        sigma, threshold = latest.row("sigma"), latest.row("threshold")
        if self._schedule:
            self._schedule.saw(sigma, threshold)
        if latest.step > self._policy_step:
            self._near = ~(sigma < ACTIVE * threshold)
        lost = latest.row("sigma_upper") > LOST * sigma
        if lost.any():
            for group in self._groups:
                group.refill([bool(lost[i]) for i in group.indices])

    def _readback(self, device: torch.device) -> Readback:
        if device not in self._readbacks:
            self._readbacks[device] = Readback(device)
        return self._readbacks[device]

    def _grouped(self) -> list[Group]:
        places: dict[torch.device, list[int]] = {}
        for i, layer in enumerate(self.layers):
            try:
                places.setdefault(layer.weight().device, []).append(i)
            except LookupError as error:
                log.warning("a layer is not measured any more: %s", error)
        groups = [Group([self.layers[i] for i in ii], ii, d) for d, ii in places.items()]
        for group in groups:
            group.set_policy([self._policies[i] for i in group.indices])
        return groups
