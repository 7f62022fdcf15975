"""Lipschitz bounds of networks: a certified bound of what a module does with its input."""

from snc_client.lipschitz.network import lipschitz_bound
from snc_client.lipschitz.result import LipschitzBound, Refused, SubNetwork, Used

__all__ = ["LipschitzBound", "Refused", "SubNetwork", "Used", "lipschitz_bound"]
