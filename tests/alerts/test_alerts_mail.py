"""Mail, against a real small SMTP server: encrypted first, and never in clear instead."""

from email import message_from_string, policy

import pytest
from alert_cases import entry, incident
from listeners import LOOPBACK, certificate, nobody, taking_mail

from snc_service.alerts import Alerting, NotDelivered
from snc_service.alerts.address import networks
from snc_service.alerts.mail import send_mail
from snc_service.alerts.message import Message
from snc_service.alerts.post import trusted

ALLOWED = networks(LOOPBACK)
PASSWORD = "the password of mail"
TOLD = Message("firing", incident(entry(10, layer="fc1 é\N{SNOWMAN}"), id=7), "https://snc.example")


@pytest.fixture
def tls(monkeypatch, tmp_path):
    """Return the context of a server whose certificate is trusted."""
    cert, context = certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    trusted.cache_clear()
    yield context
    trusted.cache_clear()


def receiver(port, *, login=False, **changes):
    given = {
        "type": "email", "host": "localhost", "port": port, "security": "none",
        "from": "snc@example.org", "to": ["anna@example.org", "ben@example.org"],
    }  # fmt: skip
    given.update({"username": "snc", "password": PASSWORD} if login else {})
    return Alerting.parse({"receivers": {"mail": {**given, **changes}}}).receivers["mail"]


def refused(target, **how) -> NotDelivered:
    with pytest.raises(NotDelivered) as error:
        send_mail(target, TOLD, how.pop("allowed", ALLOWED), **how)
    assert PASSWORD not in str(error.value)
    return error.value


def test_a_mail_arrives_with_what_happened():
    with taking_mail() as server:
        send_mail(receiver(server.port), TOLD, ALLOWED)
    (text,) = server.mails
    mail = message_from_string(text.replace("\r\n", "\n"), policy=policy.default)
    assert mail["Subject"] == "[snc] [warning] r: breach in fc1 é\N{SNOWMAN} at step 10"
    assert (mail["From"], mail["To"]) == ("snc@example.org", "anna@example.org, ben@example.org")
    assert mail["Auto-Submitted"] == "auto-generated"
    content = mail.get_content()
    assert "step 10, breach (warning): so" in content
    assert "https://snc.example/#/runs/r" in content
    assert server.commands.count("RCPT") == 2


NAMES = {
    "line-separator": "w\u2028x",
    "paragraph-separator": "w\u2029x",
    "turned-around": "w\u202ex",
    "mark": "\ufeffw",
    "private": "w\ue000\U000e0041",
    "encoded-line-ends": "=?utf-8?q?=0d=0aBcc:=20eve@example.org?=",
    "encoded-nonsense": "=?us-ascii?q?=FF?= é",
    "quotes": '"' * 60 + "<>()[]:;@\\,.",
    "long": "é" * 128,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_mail_is_sent_whatever_a_layer_is_called_and_has_no_header_of_the_name(name):
    told = Message("firing", incident(entry(10, layer=name, message=f"sigma of {name}")))
    with taking_mail() as server:
        send_mail(receiver(server.port), told, ALLOWED)
    (text,) = server.mails
    mail = message_from_string(text.replace("\r\n", "\n"), policy=policy.default)
    headers = {"Subject", "From", "To", "Date", "Message-ID", "References", "Auto-Submitted"}
    body = {"Content-Type", "Content-Transfer-Encoding", "MIME-Version"}
    assert set(mail.keys()) == headers | body
    assert server.commands.count("RCPT") == 2
    assert mail["Subject"].startswith("[snc] [warning] r: breach in ")
    assert len(mail.get_content().splitlines()) == 3  # the title, none, the event


def test_the_same_message_has_the_same_id_and_its_incident_one_thread():
    with taking_mail() as server:
        for status in ("firing", "firing", "resolved"):
            send_mail(receiver(server.port), Message(status, TOLD.incident), ALLOWED)
    mails = [message_from_string(text) for text in server.mails]
    ids = [mail["Message-ID"] for mail in mails]
    assert ids[0] == ids[1] != ids[2]
    assert len({mail["References"] for mail in mails}) == 1


def test_with_starttls_everything_of_value_is_said_after_it(tls):
    with taking_mail(tls) as server:
        send_mail(receiver(server.port, security="starttls", login=True), TOLD, ALLOWED)
    assert len(server.mails) == 1
    assert len(server.logins) == 1
    before = [each for each in server.commands if not each.startswith("tls ")]
    assert before == ["EHLO", "STARTTLS"]


def test_tls_from_the_start_is_a_way_too(tls):
    with taking_mail(tls, encrypted_at_once=True) as server:
        send_mail(receiver(server.port, security="tls", login=True), TOLD, ALLOWED)
    assert (len(server.mails), len(server.logins)) == (1, 1)


def test_a_server_without_tls_gets_neither_password_nor_mail():
    with taking_mail() as server:
        error = refused(receiver(server.port, security="starttls", login=True))
    assert error.outcome == "refused"
    assert set(server.commands) <= {"EHLO", "QUIT"}


def test_a_certificate_of_another_name_or_of_nobody_is_refused(tls, monkeypatch):
    with taking_mail(tls) as server:
        other = receiver(server.port, host="127.0.0.1", security="starttls", login=True)
        refused(other)
        monkeypatch.delenv("SSL_CERT_FILE")
        trusted.cache_clear()
        refused(receiver(server.port, security="starttls", login=True))
    assert (server.mails, server.logins) == ([], [])


@pytest.mark.parametrize(
    ("refuses", "outcome", "outage"),
    [
        ({"RCPT": "550 no such mailbox"}, "refused", False),
        ({"RCPT": "450 try later"}, "failed", True),
        ({"MAIL": "554 not you"}, "refused", False),
        ({"DATA": "451 try later"}, "failed", True),
        ({"EHLO": "421 full", "HELO": "421 full"}, "failed", True),
    ],
)
def test_what_the_server_says_decides_whether_to_try_again(refuses, outcome, outage):
    with taking_mail(refuses=refuses) as server:
        error = refused(receiver(server.port))
    assert (error.outcome, error.outage) == (outcome, outage)
    assert server.mails == []


def test_a_server_that_says_nothing_is_left_after_the_deadline():
    with taking_mail(silent=True) as server:
        error = refused(receiver(server.port), deadline_seconds=0.5)
    assert "did not answer within 0.5 seconds" in str(error)


def test_a_server_of_our_own_network_is_refused_unless_allowed():
    with taking_mail() as server:
        error = refused(receiver(server.port), allowed=())
    assert error.outcome == "refused"
    assert "SNC_ALERT_NETWORKS" in str(error)
    assert server.commands == []


def test_nobody_there_is_a_failure():
    with nobody() as port:
        assert refused(receiver(port)).outcome == "failed"
