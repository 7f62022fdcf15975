"""Reads a service from Python: runs, histories, heatmaps, events, exports and figures."""

from snc_client.api.api import Api
from snc_client.api.arrays import HeatmapArrays, History
from snc_client.api.remote_run import RemoteRun

__all__ = ["Api", "HeatmapArrays", "History", "RemoteRun"]
