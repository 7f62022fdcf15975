"""The store suite runs on a Citus cluster as well, where the environment names one."""

import os

import pytest
from citus_cluster import VARIABLE

ENGINES = ["sqlite", "postgres", *(["citus"] if VARIABLE in os.environ else [])]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request) -> str:
    """Return the name of an engine; whoever asks for it runs once per engine."""
    return request.param
