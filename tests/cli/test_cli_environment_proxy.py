"""A service on this machine is reached whatever proxy the environment names, as a job does."""

import json
import os
import subprocess
import sys

import pytest
from sending import dead_port  # noqa: F401  (a fixture)

from snc_client import Api
from snc_client.demo.service import free_port, serving


@pytest.fixture
def proxied_service(tmp_path, dead_port, monkeypatch):  # noqa: F811
    """Yield a service's port, in an environment whose proxy does not answer."""
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(tmp_path / "snc.db", port := free_port(0)):
        yield port


def test_no_proxy_stands_between_a_service_on_this_machine_and_who_reads_it(proxied_service):
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{proxied_service}"
        command = [sys.executable, "-m", "snc_service.cli", "runs", "--json", "--url", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, json.loads(done.stdout)["items"]) == (0, []), done.stderr
        with Api(url, retries=0) as api:
            assert list(api.runs()) == []


def test_an_empty_address_in_the_environment_counts_as_not_set(proxied_service):
    code = (
        "import sys; from snc_service.cli import arguments; arguments.DEFAULT_URL = sys.argv[1]; "
        "from snc_service.cli import main; sys.exit(main(['runs', '--json']))"
    )
    url = f"http://127.0.0.1:{proxied_service}"
    done = subprocess.run(
        [sys.executable, "-c", code, url],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SNC_URL": ""},
    )
    assert (done.returncode, json.loads(done.stdout)["items"]) == (0, []), done.stderr
