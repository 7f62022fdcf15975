"""Fixtures that several tests need: a real service process."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import ROOT, Sandbox, Stage

from snc_client.demo.service import free_port, serving


@pytest.fixture
def service_url(tmp_path) -> Iterator[str]:
    """Yield the URL of a real ``snc serve`` process with an empty store."""
    with serving(tmp_path / "snc.db", free_port(0)) as url:
        yield url


@pytest.fixture(scope="session")
def image() -> Iterator[tuple[Sandbox, Stage]]:
    """Yield what the Dockerfile makes, in a folder, and its last stage."""
    # Not below pytest's own folder, which only root may enter.
    with tempfile.TemporaryDirectory(prefix="snc-image-") as folder:
        sandbox = Sandbox(Path(folder))
        yield sandbox, sandbox.build(ROOT / "deploy" / "Dockerfile")
