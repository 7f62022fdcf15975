"""PolicyInForce: the current policy of a job, resolved to its layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from snc_client.callback.model.ownership import Ownership
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.layers import Coverage, Layer
from snc_client.policy import LayerPolicy, Resolved, resolve
from snc_service.wire import Policy

log = logging.getLogger("snc")

MOST_LISTED = 10  # names in one line of the log


class PolicyInForce:
    """A policy, limited to the layers that the job's optimizers allow it to write."""

    def __init__(self, policy: Policy, ownership: Ownership) -> None:
        self._policy = policy
        self._ownership = ownership
        self._layers: tuple[Layer, ...] = ()
        self._prepared: tuple[Policy, tuple[Layer, ...], Resolved] | None = None

    def by_layer(self, layers: Sequence[Layer]) -> tuple[LayerPolicy, ...]:
        """Return threshold and action of each layer. Patterns without a match are ignored."""
        self._layers = tuple(layers)
        return self._limited(layers, resolve(self._policy, layers))

    def prepare(self, policy: Policy) -> None:
        """Match the patterns of ``policy`` with the layers, in the thread that received it.

        A thousand patterns and 300 layers take half a second, which the training must not wait for.
        """
        layers = self._layers
        self._prepared = policy, layers, resolve(policy, layers)

    def by_layer_strictly(self, coverage: Coverage) -> tuple[LayerPolicy, ...]:
        """Return the same; raise ValueError for a pattern that matches no layer and no shard."""
        resolved = resolve(self._policy, coverage.layers)
        self._layers = coverage.layers
        resolved.require_matched([x.name for x in coverage.skipped if x.sharded])
        _say_uncapped(coverage.layers, resolved)
        return self._limited(coverage.layers, resolved)

    def replace(self, version: int, policy: Policy, monitor: LayerMonitor, *, step: int) -> None:
        """Apply ``policy`` of the service from ``step`` on; log what it cannot match."""
        self._policy = policy
        resolved = self._resolved(policy, monitor.layers)
        monitor.set_policy(self._limited(monitor.layers, resolved), step=step - 1)
        log.info("snc: policy version %d is in force from step %d", version, step)
        _say_uncapped(monitor.layers, resolved)
        if resolved.unmatched:
            log.warning("snc: no layer matches %s", _listed([*map(repr, resolved.unmatched)]))

    def _resolved(self, policy: Policy, layers: Sequence[Layer]) -> Resolved:
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is policy and prepared[1] == tuple(layers):
            return prepared[2]
        return resolve(policy, layers)

    def _limited(self, layers: Sequence[Layer], resolved: Resolved) -> tuple[LayerPolicy, ...]:
        return self._ownership.limited(layers, resolved.layers)


def _say_uncapped(layers: Sequence[Layer], resolved: Resolved) -> None:
    """Name the sharded layers that are rescaled instead, as those on a GPU."""
    names = [layers[i].name for i in resolved.uncapped if layers[i].sharded]
    if names:
        log.warning(
            "snc: rescaled, because cap is not possible on these shards: %s", _listed(names)
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more
