"""What names an incident: what came first, unless it only lingered when it became critical."""

from __future__ import annotations

from contextlib import closing

import httpx
import numpy as np
import pytest
from alert_cases import entry, incident
from feed import Feed
from listeners import listening
from test_alerts_kill import Service

from snc_service.alerts.channels import alerts_of
from snc_service.alerts.message import Message
from snc_service.alerts.naming import confidence, head, worst_entry
from snc_service.detect.track_record import sentence

LINGERS = entry(10, "breach")
LATER = entry(400, "sigma_jump", "critical", layer="fc2.weight")


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ((LINGERS, entry(60, "nonfinite", "critical")), 10),  # one fault that became worse
        ((LINGERS, LATER), 400),
        ((LINGERS, entry(380, "sigma_growth"), LATER), 380),  # how the second fault began
        ((LINGERS, entry(400, "sigma_growth")), 10),  # no worse
        ((entry(10, "nonfinite", "critical"), LATER), 10),
        ((LINGERS, LATER, entry(900, "nonfinite", "critical")), 400),
        ((LINGERS, entry(5, "nonfinite", "critical")), 10),  # steps went back
    ],
)
def test_a_lingering_warning_does_not_name_what_became_critical_later(entries, named):
    assert head(incident(*entries)).step == named


def test_what_came_after_entries_that_are_not_listed_may_belong_to_them():
    later = entry(1005, "nonfinite", "critical")
    assert head(incident(LINGERS, later)).step == 1005
    assert head(incident(LINGERS, later, omitted=51)).step == 10


def test_a_message_names_the_head_and_the_worst():
    both = Message("firing", incident(LINGERS, LATER))
    assert both.title == "[critical] r: sigma_jump in fc2.weight at step 400, and 1 more"
    begun = Message("firing", incident(LINGERS, entry(380, "sigma_growth"), LATER))
    assert begun.title == (
        "[critical] r: sigma_growth in fc1.weight at step 380, then sigma_jump at step 400, "
        "and 1 more"
    )
    assert begun.as_dict()["step"] == 380


def test_the_alert_of_the_warning_keeps_its_labels_when_it_ends():
    mild = incident(LINGERS)
    (before,) = alerts_of(Message("firing", mild), 1.0)
    over, critical = alerts_of(Message("firing", incident(LINGERS, LATER)), 1.0)
    assert over["labels"] == before["labels"]
    assert critical["labels"]["alertname"] == "SncSigmaJump"


def test_an_incident_is_worth_what_its_worst_event_is():
    assert confidence(incident(LINGERS, LATER)) == sentence("sigma_jump")
    assert worst_entry(incident(LINGERS, LATER)) is LATER
    # A rule that counts facts has no record: what it began with has one.
    assert confidence(
        incident(entry(1, "sigma_growth"), entry(9, "guard_rollback", "critical"))
    ) == (sentence("sigma_growth"))
    assert confidence(incident(LINGERS)) is None


def test_a_real_service_alarms_again_under_the_name_of_what_became_critical(tmp_path):
    """A layer breaches at step 100 and stays above; at step 300 another one leaps."""
    sigma = np.ones((400, 2)) * (1 + 0.002 * (np.arange(400) % 5))[:, None]
    sigma[100:, 0] *= 1.06
    sigma[300:, 1] *= 2.0
    with listening() as there, closing(Service(tmp_path)) as service:
        service.route(there.url)
        feed = Feed(service.url, "r", ("first.weight", "second.weight"))
        known = {"threshold": [1.04, 9.0], "scalars": {"loss": 1.0}}
        feed.send(range(200), sigma=sigma[:200], **known)
        there.wait_for(1)
        feed.send(range(200, 400), sigma=sigma[200:], **known)
        there.wait_for(2)
        first, second = (each.json() for each in there.heard)
        asked = {"run": "r", "state": "open"}
        (shown,) = httpx.get(f"{service.url}/api/v1/incidents", params=asked).json()["items"]
    assert (first["rule"], first["severity"], first["step"]) == ("breach", "warning", 100)
    assert first["confidence"] is None
    assert (second["rule"], second["severity"], second["step"]) == ("sigma_jump", "critical", 300)
    assert second["title"].startswith("[critical] r: sigma_jump in second.weight at step 300")
    assert second["confidence"] == sentence("sigma_jump")
    for key in ("rule", "layer", "step", "severity", "confidence"):
        assert shown[key] == second[key]
    assert [event["rule"] for event in shown["events"]] == ["breach", "sigma_jump"]
