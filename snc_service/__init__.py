"""The service: stores, serves, exposes and displays the measurements of training jobs."""

__version__ = "0.1.0"
