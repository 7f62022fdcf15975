"""Which saved state belongs to which layer, whatever wrappers the model had when it was saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from snc_client.layers import Layer
from snc_client.layers.names import canonical

log = logging.getLogger("snc")


def by_name(
    state: Mapping[str, Mapping[str, Any]], layers: Sequence[Layer]
) -> dict[str, Mapping[str, Any]]:
    """Return the ``state`` of each layer by its name now, found by canonical names.

    Names on one side only are logged: a reference that is not found is measured anew.
    """
    known = {canonical(name): each for name, each in state.items()}
    ours = {layer.name: canonical(layer.name) for layer in layers}
    found = {name: known[short] for name, short in ours.items() if short in known}
    lacking = sorted(ours.keys() - found.keys())
    left = sorted(known.keys() - set(ours.values()))
    if lacking or left:
        log.warning(
            "snc: state and model differ: not in the state: %s; not in the model: %s",
            ", ".join(lacking) or "none",
            ", ".join(left) or "none",
        )
    return found
