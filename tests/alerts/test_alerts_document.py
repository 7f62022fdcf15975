"""The routing document: what is wrong is named, secrets are masked, masks come back unharmed."""

import copy
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from alert_cases import entry, incident

from snc_service.alerts import Alerting
from snc_service.alerts.receivers import TYPES
from snc_service.cli.commands.alerts import read_document
from snc_service.wire import WireError

MASK = "********"
DOCUMENT = {
    "receivers": {
        "hook": {
            "type": "webhook",
            "url": "https://a.example/hooks/tail-of-url?key=1",
            "secret": "a secret of the hook",
        },
        "chat": {"type": "slack", "url": "https://hooks.example:8443/services/tail-of-url"},
        "am": {
            "type": "alertmanager",
            "url": "http://am.example:9093/prefix/",
            "username": "snc",
            "password": "a password of am",
        },
        "mail": {
            "type": "email",
            "host": "mail.example",
            "from": "snc@example.org",
            "to": ["anna@example.org", "ben@example.org"],
            "username": "snc",
            "password": "a password of mail",
        },
    },
    "routes": [
        {"receivers": ["chat"]},
        {
            "project": "llm-*",
            "severity": "critical",
            "rules": ["sigma_*", "nonfinite"],
            "receivers": ["hook", "mail"],
            "repeat_seconds": 60,
            "resolved": False,
        },
    ],
    "service_url": "https://snc.example/",
}
SECRETS = ("tail-of-url", "a secret of the hook", "a password of am", "a password of mail")


def changed(*path, **values):
    """Return the document with some keys of one of its parts changed (None: taken away)."""
    document = copy.deepcopy(DOCUMENT)
    part = document
    for key in path:
        part = part[key]
    for name, value in values.items():
        name = name.rstrip("_")
        if value is None:
            part.pop(name)
        else:
            part[name] = value
    return document


def refused(document, before=None) -> WireError:
    with pytest.raises(WireError) as error:
        Alerting.parse(document, before)
    for secret in SECRETS:
        assert secret not in str(error.value)
    return error.value


def test_a_document_is_read_with_its_defaults():
    alerting = Alerting.parse(DOCUMENT)
    mail = alerting.receivers["mail"]
    assert (mail.port, mail.security, mail.from_) == (587, "starttls", "snc@example.org")
    assert alerting.receivers["am"].url == "http://am.example:9093/prefix"
    first, second = alerting.routes
    assert (first.project, first.severity, first.rules) == ("*", "warning", ("*",))
    assert (first.repeat_seconds, first.resolved) == (14_400, True)
    assert (second.repeat_seconds, second.resolved) == (60, False)
    assert alerting.service_url == "https://snc.example"


def test_what_is_stored_reads_the_same_again():
    alerting = Alerting.parse(DOCUMENT)
    stored = json.loads(json.dumps(alerting.as_dict()))
    assert Alerting.parse(stored) == alerting
    assert Alerting.parse({}) == Alerting({})


def test_the_documented_example_is_taken(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "alerts.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "alerts.toml"
    path.write_text(text)
    alerting = Alerting.parse(read_document(str(path)))
    assert {each.TYPE for each in alerting.receivers.values()} == set(TYPES)
    for kind in TYPES.values():
        keys = {each.name.rstrip("_") for each in fields(kind)} - {"name"}
        assert keys <= set(re.findall(r"\w+", text)), kind
    assert len(alerting.routes) == 2


HOOK, CHAT, AM, MAIL = (("receivers", name) for name in ("hook", "chat", "am", "mail"))
ROUTE = ("routes", 1)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "alerting"),
        (changed(wings=1), "wings"),
        (changed(receivers=[]), "receivers"),
        (changed(receivers={"a b": {}}), "receivers"),
        (changed(receivers={f"r{i}": {} for i in range(33)}), "receivers"),
        (changed("receivers", hook=3), "receivers.hook"),
        (changed(*HOOK, type="pager"), "receivers.hook.type"),
        (changed(*HOOK, type=None), "receivers.hook.type"),
        (changed(*HOOK, colour="red"), "receivers.hook.colour"),
        (changed(*HOOK, url=None), "receivers.hook.url"),
        (changed(*HOOK, url="ftp://a.example/tail-of-url"), "receivers.hook.url"),
        (changed(*HOOK, url="https://"), "receivers.hook.url"),
        (changed(*HOOK, url="https://u:p@a.example/"), "receivers.hook.url"),
        (changed(*HOOK, url="https://a.example/#tail-of-url"), "receivers.hook.url"),
        (changed(*HOOK, url="https://a.example/ x"), "receivers.hook.url"),
        (changed(*HOOK, url="https://a.example/\r\nX: y"), "receivers.hook.url"),
        (changed(*HOOK, url="https://a.example:0/"), "receivers.hook.url"),
        (changed(*HOOK, url="https://a.example:99999/"), "receivers.hook.url"),
        (changed(*HOOK, url="https://a.example/" + 3_000 * "x"), "receivers.hook.url"),
        (changed(*HOOK, secret="too short"), "receivers.hook.secret"),
        (changed(*HOOK, secret=None), "receivers.hook.secret"),
        (changed(*HOOK, secret=MASK), "receivers.hook.secret"),
        (changed(*CHAT, url=f"https://hooks.example/{MASK}"), "receivers.chat.url"),
        (changed(*AM, url="http://am.example/?tail-of-url"), "receivers.am.url"),
        (changed(*AM, username=None), "receivers.am.username"),
        (changed(*AM, password=None), "receivers.am.password"),
        (changed(*MAIL, host="two words"), "receivers.mail.host"),
        (changed(*MAIL, port=70_000), "receivers.mail.port"),
        (changed(*MAIL, port="25"), "receivers.mail.port"),
        (changed(*MAIL, security="ssl"), "receivers.mail.security"),
        (changed(*MAIL, security="none"), "receivers.mail.security"),
        (changed(*MAIL, from_="Anna <anna@example.org>"), "receivers.mail.from"),
        (changed(*MAIL, from_="anna"), "receivers.mail.from"),
        (changed(*MAIL, to=[]), "receivers.mail.to"),
        (changed(*MAIL, to="anna@example.org"), "receivers.mail.to"),
        (changed(*MAIL, to=["anna@example.org\nBcc: x@y"]), "receivers.mail.to"),
        (changed(routes={}), "routes"),
        (changed("routes", **{}) | {"routes": [{"receivers": ["chat"]}] * 129}, "routes"),
        (changed(*ROUTE, receivers=None), "routes.1.receivers"),
        (changed(*ROUTE, receivers=[]), "routes.1.receivers"),
        (changed(*ROUTE, receivers=["ghost"]), "routes.1.receivers"),
        (changed(*ROUTE, severity="fatal"), "routes.1.severity"),
        (changed(*ROUTE, severty="info"), "routes.1.severty"),
        (changed(*ROUTE, rules=[]), "routes.1.rules"),
        (changed(*ROUTE, rules=[""]), "routes.1.rules"),
        (changed(*ROUTE, project=""), "routes.1.project"),
        (changed(*ROUTE, repeat_seconds=-1), "routes.1.repeat_seconds"),
        (changed(*ROUTE, repeat_seconds=1), "routes.1.repeat_seconds"),
        (changed(*ROUTE, repeat_seconds="daily"), "routes.1.repeat_seconds"),
        (changed(*ROUTE, repeat_seconds=float("nan")), "routes.1.repeat_seconds"),
        (changed(*ROUTE, resolved="yes"), "routes.1.resolved"),
        (changed(service_url="snc.example"), "service_url"),
    ],
)
def test_what_is_wrong_is_named(document, field):
    error = refused(document)
    assert error.field == field
    assert str(error).startswith(f"{field} must") or "is not known here" in str(error)


def test_what_people_see_holds_no_secret_but_says_where_it_goes():
    masked = Alerting.parse(DOCUMENT).masked()
    text = json.dumps(masked)
    for secret in SECRETS:
        assert secret not in text
    assert masked["receivers"]["hook"]["url"] == f"https://a.example/{MASK}"
    assert masked["receivers"]["hook"]["secret"] == MASK
    assert masked["receivers"]["chat"]["url"] == f"https://hooks.example:8443/{MASK}"
    assert masked["receivers"]["am"]["url"] == "http://am.example:9093/prefix"
    assert masked["receivers"]["mail"]["password"] == MASK
    assert masked["receivers"]["mail"]["host"] == "mail.example"


def test_no_secret_is_in_what_is_logged_of_a_receiver():
    text = repr(Alerting.parse(DOCUMENT))
    for secret in SECRETS:
        assert secret not in text


def test_a_mask_that_comes_back_means_as_it_is():
    before = Alerting.parse(DOCUMENT)
    masked = before.masked()
    masked["routes"][0]["severity"] = "info"
    after = Alerting.parse(masked, before.as_dict())
    assert after.receivers == before.receivers
    assert after.routes[0].severity == "info"


@pytest.mark.parametrize(
    ("receiver", "values", "field"),
    [
        ("hook", {"url": "https://evil.example/hooks"}, "secret"),
        ("am", {"url": "http://evil.example:9093"}, "password"),
        ("mail", {"host": "evil.example"}, "password"),
        ("mail", {"port": 25}, "password"),
        ("mail", {"security": "tls"}, "password"),
        ("hook", {"url": f"https://evil.example/{MASK}"}, "secret"),
        ("chat", {"url": f"https://evil.example/{MASK}"}, "url"),
    ],
)
def test_a_masked_secret_never_goes_to_another_address(receiver, values, field):
    before = Alerting.parse(DOCUMENT)
    masked = before.masked()
    masked["receivers"][receiver].update(values)
    assert refused(masked, before.as_dict()).field == f"receivers.{receiver}.{field}"


def test_a_mask_under_another_name_or_type_keeps_nothing():
    before = Alerting.parse(DOCUMENT)
    masked = before.masked()
    masked["receivers"]["renamed"] = masked["receivers"].pop("hook")
    assert refused(masked, before.as_dict()).field == "receivers.renamed.secret"
    masked = before.masked()
    masked["receivers"]["chat"] = {**masked["receivers"]["hook"]}
    assert refused(masked, before.as_dict()).field == "receivers.chat.secret"


def test_every_route_that_matches_adds_its_receivers():
    alerting = Alerting.parse(DOCUMENT)
    critical = entry(1, "sigma_jump", "critical")
    assert alerting.told(incident(critical, project="llm-7")) == ("chat", "hook", "mail")
    assert alerting.told(incident(critical, project="vision")) == ("chat",)
    assert alerting.told(incident(entry(1, "breach"), project="llm-7")) == ("chat",)
    other = entry(1, "loss_divergence", "critical")
    assert alerting.told(incident(other, project="llm-7")) == ("chat",)
    assert alerting.told(incident(other, critical, project="llm-7")) == ("chat", "hook", "mail")
    assert alerting.told(incident(entry(1, "policy_changed", "info"))) == ()


def test_a_receiver_is_told_on_the_most_eager_terms_of_its_routes():
    document = changed()
    document["routes"] = [
        {"receivers": ["chat"], "repeat_seconds": None, "resolved": False},
        {"receivers": ["chat"], "repeat_seconds": 900, "resolved": False},
        {"receivers": ["chat"], "repeat_seconds": 600, "resolved": True, "severity": "critical"},
    ]
    alerting = Alerting.parse(document)
    mild = alerting.terms("chat", incident(entry(1, "breach")))
    assert (mild.repeat_seconds, mild.resolved) == (900, False)
    bad = alerting.terms("chat", incident(entry(1, "nonfinite", "critical")))
    assert (bad.repeat_seconds, bad.resolved) == (600, True)
    assert alerting.terms("hook", incident(entry(1, "breach"))) is None
