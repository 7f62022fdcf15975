"""Undo an optimizer step that would ruin the training."""

from snc_client.callback.guard.guard import Guard
from snc_client.callback.guard.settings import GuardSettings, GuardStopped

__all__ = ["Guard", "GuardSettings", "GuardStopped"]
