"""Receivers that lead elsewhere, and a real ``snc serve`` that sends to them."""

from __future__ import annotations

import os
import socket
from contextlib import closing

import pytest
from listeners import listening, says, until
from test_alerts_kill import Service

# Loaded by the interpreter of the service: every other answer for the name leads to 127.0.0.2.
REBINDING = """
import itertools, socket
real, numbers = socket.getaddrinfo, itertools.count()
def getaddrinfo(host, port, *rest, **more):
    if host not in ("rebind.example", b"rebind.example"):
        return real(host, port, *rest, **more)
    address = "127.0.0.1" if next(numbers) % 2 == 0 else "127.0.0.2"
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_a_counted_failure_and_its_target_hears_nothing(tmp_path, status):
    with listening() as elsewhere, listening(says(status, Location=elsewhere.url)) as there:
        with closing(Service(tmp_path)) as service:
            service.route(there.url)
            service.breach("r")
            there.wait_for(1)
            until(lambda: service.receiver()["failures"])
            assert "redirects are not followed" in str(service.receiver())
        assert elsewhere.heard == []


def test_a_name_that_is_rebound_reaches_only_the_address_that_was_checked(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(REBINDING)
    environment = {
        "SNC_ALERT_NETWORKS": "127.0.0.1/32",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    with listening() as there, socket.socket() as ours:
        ours.bind(("127.0.0.2", there.port))
        ours.listen(8)
        ours.setblocking(False)
        with closing(Service(tmp_path, **environment)) as service:
            service.route(f"http://rebind.example:{there.port}/hooks/secret-path")
            for number in range(2):
                service.breach(f"run-{number}")
            until(lambda: there.heard and service.receiver()["failures"])
            assert "127.0.0.2" in str(service.receiver()) or "public" in str(service.receiver())
        with pytest.raises(BlockingIOError):
            ours.accept()
