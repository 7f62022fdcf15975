"""One POST against real servers that hang, drip, flood, redirect, or are somebody else."""

import socket
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpcore
import pytest
from listeners import LOOPBACK, certificate, drips, floods, hangs, listening, nobody, says

from snc_service.alerts import post as module
from snc_service.alerts.address import networks
from snc_service.alerts.post import NotDelivered, post, retry_after, trusted

ALLOWED = networks(LOOPBACK)
BODY = b'{"a": 1}'
HEADERS = {"Content-Type": "application/json"}


def refused(url, allowed=ALLOWED, **how) -> NotDelivered:
    with pytest.raises(NotDelivered) as error:
        post(url, BODY, HEADERS, allowed, **how)
    assert "secret-path" not in str(error.value)
    return error.value


def test_what_is_posted_arrives_as_it_is():
    with listening() as there:
        post(f"{there.url}?x=1", BODY, HEADERS, ALLOWED)
        (heard,) = there.wait_for(1)
    assert (heard.path, heard.body) == ("/hooks/secret-path?x=1", BODY)
    assert heard.headers["Content-Type"] == "application/json"
    assert heard.headers["Host"] == f"127.0.0.1:{there.port}"


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_is_success(status):
    with listening(says(status)) as there:
        post(there.url, BODY, HEADERS, ALLOWED)


@pytest.mark.parametrize(
    ("status", "outcome", "outage"),
    [
        (500, "failed", True), (503, "failed", True), (429, "failed", True), (408, "failed", True),
        (400, "refused", False), (401, "refused", False), (404, "refused", False),
        (410, "refused", False),
    ],
)  # fmt: skip
def test_a_refusal_says_whether_the_receiver_or_the_message_is_the_trouble(status, outcome, outage):
    with listening(says(status)) as there:
        error = refused(there.url)
    assert (error.outcome, error.outage) == (outcome, outage)
    assert str(error) == f"127.0.0.1:{there.port} answered {status}"


def test_a_redirect_is_refused_and_nothing_goes_where_it_leads():
    with listening() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            with listening(says(status, Location=elsewhere.url)) as there:
                error = refused(there.url)
            assert error.outcome == "refused"
            assert "redirects are not followed" in str(error)
        assert elsewhere.heard == []


def test_an_address_of_ours_is_refused_before_a_connection_is_made():
    with listening() as there:
        error = refused(there.url, allowed=())
        assert error.outcome == "refused"
        assert "SNC_ALERT_NETWORKS=127.0.0.1" in str(error)
        named = there.url.replace("127.0.0.1", "localhost")
        assert "not public" in str(refused(named, allowed=()))
        assert there.heard == []


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that answers with a public address when checked, and with loopback a moment later."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host, port, *rest, **more):
        if host != "rebind.example":
            return real(host, port, *rest, **more)
        asked.append(host)
        address = "198.51.100.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    connected = []

    def connect(address, *rest, **more):
        connected.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", connect)
    with listening() as there:
        error = refused(
            f"http://rebind.example:{there.port}/", allowed=networks(["198.51.100.0/24"])
        )
    assert connected == ["198.51.100.1"]
    assert asked == ["rebind.example"]
    assert "Connection refused" in str(error)


def test_a_name_of_several_addresses_is_refused_if_one_of_them_is_ours(monkeypatch):
    def both(host, port, *rest, **more):
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("8.8.8.8", port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert refused("http://both.example/", allowed=()).outcome == "refused"


@pytest.mark.parametrize("behaviour", [hangs, drips])
def test_one_deadline_ends_it_all(behaviour):
    with listening(behaviour) as there:
        error = refused(there.url, deadline_seconds=0.5)
        assert there.heard
    assert (error.outcome, error.outage) == ("failed", True)
    assert "did not answer within 0.5 seconds" in str(error)


def test_a_body_without_end_is_not_read():
    with listening(floods) as there:
        post(there.url, BODY, HEADERS, ALLOWED)
        assert there.heard


def test_a_socket_that_takes_connections_and_never_reads_is_left_after_the_deadline():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(1)
        error = refused(f"http://127.0.0.1:{mute.getsockname()[1]}/", deadline_seconds=0.4)
    assert "did not answer" in str(error)


def test_something_else_than_http_is_a_failure():
    with socket.socket() as odd:
        odd.bind(("127.0.0.1", 0))
        odd.listen(1)

        def banner():
            connection, _ = odd.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=banner, daemon=True)
        thread.start()
        error = refused(f"http://127.0.0.1:{odd.getsockname()[1]}/")
        thread.join()
    assert error.outcome == "failed"


def test_nobody_there_and_no_such_name_are_failures_with_their_reason():
    with nobody() as port:
        error = refused(f"http://127.0.0.1:{port}/secret-path")
        assert (error.outcome, error.outage) == ("failed", True)
        assert "Connection refused" in str(error)
    error = refused("http://nobody.invalid/secret-path")
    assert (error.outcome, error.outage) == ("failed", True)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    with listening() as proxy, listening() as there:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        post(there.url, BODY, HEADERS, ALLOWED)
        assert len(there.heard) == 1
        assert proxy.heard == []


@pytest.fixture
def fresh_trust(monkeypatch):
    trusted.cache_clear()
    yield monkeypatch
    trusted.cache_clear()


def test_a_certificate_is_checked_against_the_name_of_the_url(fresh_trust, tmp_path):
    cert, context = certificate(tmp_path, "localhost")
    with listening(context=context) as there:
        named = there.url.replace("127.0.0.1", "localhost")
        assert "certificate" in str(refused(named)).lower()
        assert there.heard == []
        fresh_trust.setenv("SSL_CERT_FILE", str(cert))
        trusted.cache_clear()
        post(named, BODY, HEADERS, ALLOWED)
        (heard,) = there.wait_for(1)
        assert heard.headers["Host"] == f"localhost:{there.port}"
        # The address alone is not what the certificate speaks of.
        assert "certificate" in str(refused(there.url)).lower()


def test_retry_after_is_seconds_or_a_date():
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after("120", now.timestamp()) == 120
    assert retry_after(later, now.timestamp()) == 90
    assert retry_after(later, now.timestamp() + 1_000) == 0
    for nonsense in (None, "", "soon", "-5", "1e9", "9" * 30, "Sun, 99 Xyz"):
        assert retry_after(nonsense, now.timestamp()) is None


def test_retry_after_of_a_busy_receiver_is_passed_on():
    with listening(says(503, Retry_After="77")) as there:
        assert refused(there.url).retry_after == 77


def test_no_url_leads_to_a_file_of_this_machine():
    backend = module._Pinned(ALLOWED, deadline=0.0)
    with pytest.raises(httpcore.ConnectError):
        backend.connect_unix_socket("/run/x.sock")
