"""The forms of a message: signed JSON, text that calls nobody, Alertmanager's labels."""

import hashlib
import hmac
import json
import re
from pathlib import Path

import pytest
from alert_cases import NOW, entry, incident
from listeners import LOOPBACK, listening

from snc_service.alerts import Alerting
from snc_service.alerts.address import networks
from snc_service.alerts.channels import alerts_of, slack_text, tell
from snc_service.alerts.message import Message, test_message

# pytest would take it for a test of its own.
test_message.__test__ = False

ALLOWED = networks(LOOPBACK)
SECRET = "a secret of sixteen characters"
FIRST = entry(10, "sigma_growth", message="fc1.weight: sigma is 2.3 times its recent mean")
TWO = incident(FIRST, entry(12, "nonfinite", "critical", layer="fc2.weight"), id=7, revision=2)


def receiver(type, url, **more):
    document = {"receivers": {"r": {"type": type, "url": url, **more}}}
    return Alerting.parse(document).receivers["r"]


def sent(type, message, **more):
    """Return the one request that a receiver of this type gets."""
    with listening() as there:
        tell(receiver(type, there.url, **more), message, ALLOWED)
        (heard,) = there.wait_for(1)
    return heard


def test_a_webhook_is_signed_over_its_time_and_its_bytes():
    heard = sent("webhook", Message("firing", TWO), secret=SECRET)
    timestamp = heard.headers["X-Snc-Timestamp"]
    signed = timestamp.encode() + b"." + heard.body
    right = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert heard.headers["X-Snc-Signature"] == f"sha256={right}"
    assert heard.headers["Content-Type"] == "application/json"
    assert SECRET not in str(heard)


def test_the_check_that_the_documentation_shows_accepts_ours_and_nothing_else():
    page = (Path(__file__).resolve().parents[2] / "docs" / "alerts.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code, names)
    is_ours = names["is_ours"]
    heard = sent("webhook", Message("firing", TWO), secret=SECRET)
    assert is_ours(heard.headers, heard.body, SECRET)
    assert not is_ours(heard.headers, heard.body + b" ", SECRET)
    assert not is_ours(heard.headers, heard.body, SECRET + "x")
    later = str(int(heard.headers["X-Snc-Timestamp"]) + 1)
    assert not is_ours({**heard.headers, "X-Snc-Timestamp": later}, heard.body, SECRET)


def test_a_webhook_says_what_was_first_and_lists_the_rest_in_order():
    told = sent("webhook", Message("firing", TWO, "https://snc.example"), secret=SECRET).json()
    assert told["version"] == 1
    assert (told["status"], told["severity"]) == ("firing", "critical")
    assert (told["incident"], told["run"], told["project"]) == (7, "r", "p")
    assert (told["rule"], told["layer"], told["step"]) == ("sigma_growth", "fc1.weight", 10)
    assert [event["rule"] for event in told["events"]] == ["sigma_growth", "nonfinite"]
    assert told["events"][0]["message"] == FIRST.message
    assert told["link"] == "https://snc.example/#/runs/r"
    assert told["title"] == (
        "[critical] r: sigma_growth in fc1.weight at step 10, then nonfinite at step 12"
    )


def test_a_message_sent_twice_says_that_it_is_the_same():
    keys = [
        sent("webhook", Message(status, each), secret=SECRET).headers["X-Snc-Delivery"]
        for status, each in (("firing", TWO), ("firing", TWO), ("resolved", TWO))
    ]
    assert keys == ["7-2-firing", "7-2-firing", "7-2-resolved"]


def test_names_in_slack_call_nobody_and_are_no_markup():
    hostile = entry(1, layer="<!channel> @here & <https://evil.example|x>")
    text = slack_text(Message("firing", incident(hostile)))
    assert "<" not in text
    assert "@here" not in text
    assert "&lt;!channel&gt; @\N{ZERO WIDTH SPACE}here &amp; " in text
    assert sent("slack", Message("firing", incident(hostile))).json() == {"text": text}


@pytest.mark.parametrize(
    ("name", "none"),
    [
        ("*bold*", "*bold*"),
        ("`code`", "`code`"),
        ("~gone~", "~gone~"),
        ("_slanted_", "_slanted_"),
        ("[a](https://evil.example)", "]("),
        ("https://evil.example", "https://"),
        ("w\u2028- another event", "\u2028"),
        ("w\u202ex", "\u202e"),
    ],
)
def test_marks_in_a_name_set_and_link_nothing_in_slack(name, none):
    text = slack_text(Message("firing", incident(entry(1, layer=name, message=name))))
    assert none not in text
    assert len(text.splitlines()) == 2


def test_slack_gets_a_title_a_line_per_event_and_the_link():
    lines = slack_text(Message("firing", TWO, "https://snc.example")).splitlines()
    assert (
        lines[0]
        == "*[critical] r: sigma_growth in fc1.weight at step 10, then nonfinite at step 12*"
    )
    assert lines[1] == f"- step 10, sigma_growth (warning): {FIRST.message}"
    assert len(lines) == 5  # the last but one says how often the rule was right
    assert lines[-1] == "<https://snc.example/#/runs/r|open the run>"


def test_what_was_left_out_is_counted():
    flood = incident(FIRST, omitted=30)
    assert "and 30 more" in Message("firing", flood).lines
    assert Message("firing", flood).title.endswith(", and 30 more")


def test_a_run_that_is_over_says_so_in_its_title():
    assert Message("resolved", TWO).title.startswith("[resolved] r: sigma_growth")
    assert test_message(None, NOW).title.startswith("[test] test: test")


def test_alertmanager_gets_one_alert_whose_labels_stay():
    plain = incident(FIRST, id=7)
    (alert,) = alerts_of(Message("firing", plain), NOW + 10)
    assert alert["labels"] == {
        "alertname": "SncSigmaGrowth",
        "source": "snc",
        "run": "r",
        "project": "p",
        "rule": "sigma_growth",
        "severity": "warning",
        "incident": "7",
        "layer": "fc1.weight",
    }
    assert alert["startsAt"] == "2025-11-22T08:26:40.000Z"
    assert alert["endsAt"] == "2025-11-22T08:31:50.000Z"
    assert FIRST.message in alert["annotations"]["description"]
    later = incident(FIRST, entry(20, "breach"), id=7, revision=2)
    (again,) = alerts_of(Message("firing", later), NOW + 70)
    assert again["labels"] == alert["labels"]


def test_an_incident_that_became_worse_ends_the_milder_alert():
    mild, bad = alerts_of(Message("firing", TWO), NOW + 10)
    assert (mild["labels"]["severity"], bad["labels"]["severity"]) == ("warning", "critical")
    assert mild["endsAt"] < bad["endsAt"]
    assert {**mild["labels"], "severity": "critical"} == bad["labels"]


def test_an_incident_that_is_over_ends_its_alert():
    over = incident(FIRST, state="resolved", resolved_at=NOW + 60)
    (alert,) = alerts_of(Message("resolved", over), NOW + 90)
    assert alert["endsAt"] == "2025-11-22T08:27:40.000Z"


@pytest.mark.parametrize("login", [{}, {"username": "snc", "password": "pässword"}])
def test_alertmanager_is_asked_below_its_base_with_its_login(login):
    heard = sent("alertmanager", Message("firing", TWO), **login)
    assert heard.path == "/hooks/secret-path/api/v2/alerts"
    assert len(json.loads(heard.body)) == 2
    assert ("Authorization" in heard.headers) == bool(login)
    if login:
        assert heard.headers["Authorization"] == "Basic c25jOnDDpHNzd29yZA=="
