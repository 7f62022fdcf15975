"""Fixtures that several tests need: a real service process."""

from collections.abc import Iterator

import pytest

from snc_client.demo.service import free_port, serving


@pytest.fixture
def service_url(tmp_path) -> Iterator[str]:
    """Yield the URL of a real ``snc serve`` process with an empty store."""
    with serving(tmp_path / "snc.db", free_port(0)) as url:
        yield url
