"""The service: stores, serves, exposes and shows what training jobs report."""

__version__ = "0.1.0"
