"""PolicyInForce: the policy that a job obeys now, laid out by layer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from snc_client.callback.model.ownership import Ownership
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.layers import Layer
from snc_client.policy import LayerPolicy, Resolved, resolve
from snc_service.wire import Policy

log = logging.getLogger("snc")


class PolicyInForce:
    """A policy and the owners of the layers, which limit what it may write."""

    def __init__(self, policy: Policy, ownership: Ownership) -> None:
        self._policy = policy
        self._ownership = ownership

    def by_layer(self, layers: Sequence[Layer]) -> tuple[LayerPolicy, ...]:
        """Return threshold and action of each layer. Patterns without a match are ignored."""
        return self._limited(layers, resolve(self._policy, layers))

    def by_layer_strictly(self, layers: Sequence[Layer]) -> tuple[LayerPolicy, ...]:
        """Return the same; raise ValueError for a pattern that matches no layer."""
        resolved = resolve(self._policy, layers)
        resolved.require_matched()
        return self._limited(layers, resolved)

    def replace(
        self, version: int, policy: Policy, monitor: LayerMonitor, *, step: int, strict: bool
    ) -> None:
        """Put ``policy`` of the service in force from ``step`` on; log what it cannot do."""
        self._policy = policy
        resolved = resolve(policy, monitor.layers)
        monitor.set_policy(self._limited(monitor.layers, resolved), step=step - 1)
        log.info("snc: policy version %d is in force from step %d", version, step)
        if strict and (names := monitor.uncertifiable()):
            log.warning("snc: not held, strict has no certificate for: %s", ", ".join(names))
        if resolved.unmatched:
            log.warning("snc: no layer matches %s", ", ".join(map(repr, resolved.unmatched)))

    def _limited(self, layers: Sequence[Layer], resolved: Resolved) -> tuple[LayerPolicy, ...]:
        return self._ownership.limited(layers, resolved.layers)
