"""The client: measures sigma of every layer in a training job, holds it under a threshold."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snc_client.api import Api
    from snc_client.callback import (
        GuardSettings,
        GuardStopped,
        Reading,
        SNCallback,
        ThresholdBreached,
        warm_up,
    )
    from snc_client.certificate import Certificate, certify
    from snc_client.errors import ApiError, SNCError
    from snc_client.layers import Coverage
    from snc_client.lipschitz import LipschitzBound, lipschitz_bound
    from snc_client.measurement import Measurement, measure
    from snc_service.wire import Action, Command, Policy

__all__ = [
    "Action",
    "Api",
    "ApiError",
    "Certificate",
    "Command",
    "Coverage",
    "GuardSettings",
    "GuardStopped",
    "LipschitzBound",
    "Measurement",
    "Policy",
    "Reading",
    "SNCError",
    "SNCallback",
    "ThresholdBreached",
    "certify",
    "lipschitz_bound",
    "measure",
    "warm_up",
]

# Each module is imported when one of its names is first used. Importing `snc_client` alone needs
# no torch, so the sender and `snc replay` run where torch is not installed.
_MODULES = {
    "Action": "snc_service.wire",
    "Api": "snc_client.api",
    "ApiError": "snc_client.errors",
    "Certificate": "snc_client.certificate",
    "Command": "snc_service.wire",
    "Coverage": "snc_client.layers",
    "GuardSettings": "snc_client.callback",
    "GuardStopped": "snc_client.callback",
    "LipschitzBound": "snc_client.lipschitz",
    "Measurement": "snc_client.measurement",
    "Policy": "snc_service.wire",
    "Reading": "snc_client.callback",
    "SNCError": "snc_client.errors",
    "SNCallback": "snc_client.callback",
    "ThresholdBreached": "snc_client.callback",
    "certify": "snc_client.certificate",
    "lipschitz_bound": "snc_client.lipschitz",
    "measure": "snc_client.measurement",
    "warm_up": "snc_client.callback",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
