"""SNCallback: measure every layer at a step, hold it under its threshold, report it."""

from snc_client.callback.guard_settings import GuardSettings, GuardStopped
from snc_client.callback.reading import Latest, Reading, ThresholdBreached
from snc_client.callback.sn_callback import SNCallback
from snc_client.callback.warmup import warm_up

__all__ = [
    "GuardSettings",
    "GuardStopped",
    "Latest",
    "Reading",
    "SNCallback",
    "ThresholdBreached",
    "warm_up",
]
