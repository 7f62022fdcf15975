"""The client: measures sigma of every layer in a training job, holds it under a threshold."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snc_client.callback import (
        GuardSettings,
        GuardStopped,
        SNCallback,
        ThresholdBreached,
        warm_up,
    )
    from snc_client.certificate import certify
    from snc_client.measurement import measure

__all__ = [
    "GuardSettings",
    "GuardStopped",
    "SNCallback",
    "ThresholdBreached",
    "certify",
    "measure",
    "warm_up",
]

# Loaded at first use: what needs no torch (the sender, a replay) must neither wait for its import
# nor fail where there is none.
_HOMES = {
    "GuardSettings": "callback",
    "GuardStopped": "callback",
    "SNCallback": "callback",
    "ThresholdBreached": "callback",
    "certify": "certificate",
    "measure": "measurement",
    "warm_up": "callback",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"snc_client.{_HOMES[name]}"), name)
