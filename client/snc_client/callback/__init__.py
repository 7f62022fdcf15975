"""SNCallback: measure every layer at a step, hold it under its threshold, report it."""

from snc_client.callback.guard.settings import GuardSettings, GuardStopped
from snc_client.callback.readback.latest import Latest, Reading, ThresholdBreached
from snc_client.callback.schedule.threshold_schedule import warm_up
from snc_client.callback.sn_callback import SNCallback

__all__ = [
    "GuardSettings",
    "GuardStopped",
    "Latest",
    "Reading",
    "SNCallback",
    "ThresholdBreached",
    "warm_up",
]
