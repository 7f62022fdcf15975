"""The message format and the transport of each type of receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from snc_service.alerts.address import Network
from snc_service.alerts.document import rank
from snc_service.alerts.mail import send_mail
from snc_service.alerts.message import Message, rfc3339
from snc_service.alerts.naming import head
from snc_service.alerts.post import post
from snc_service.alerts.receivers import Alertmanager, Email, Receiver, Slack, Webhook
from snc_service.wire import SEVERITIES

SIGNATURE: Final = "X-Snc-Signature"
TIMESTAMP: Final = "X-Snc-Timestamp"
DELIVERY: Final = "X-Snc-Delivery"
# Alertmanager ends an alert this long after the last refresh, for example if the service is gone.
STANDS_SECONDS: Final = 300.0
_MARKUP: Final = re.compile(r"[@*~`]|\](?=\()|\b_|_\b")  # "_" inside a word is none
_JSON: Final = {"Content-Type": "application/json"}


def tell(receiver: Receiver, message: Message, allowed: Sequence[Network]) -> None:
    """Deliver a message; return once the receiver accepted it. Raises `NotDelivered`."""
    if isinstance(receiver, Email):
        send_mail(receiver, message, allowed)
        return
    now = time.time()
    if isinstance(receiver, Webhook):
        body = _bytes(message.as_dict())
        post(receiver.url, body, {**_JSON, **signed(receiver, message, body, now)}, allowed)
    elif isinstance(receiver, Slack):
        post(receiver.url, _bytes({"text": slack_text(message)}), _JSON, allowed)
    else:
        body = _bytes([alert for each in _each(message) for alert in alerts_of(each, now)])
        url = f"{receiver.url}/api/v2/alerts"
        post(url, body, {**_JSON, **_basic(receiver)}, allowed)


def signed(receiver: Webhook, message: Message, body: bytes, now: float) -> dict[str, str]:
    """Return the headers that authenticate the service and identify a repeated message.

    The signature covers the time, so a recorded request cannot be replayed later.
    """
    timestamp = str(int(now))
    return {
        TIMESTAMP: timestamp,
        SIGNATURE: f"sha256={signature(receiver.secret, timestamp, body)}",
        DELIVERY: message.key,
    }


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the HMAC-SHA256 of ``timestamp.body`` in hex, keyed by the secret in UTF-8."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def slack_text(message: Message) -> str:
    """Return text with names escaped: a name cannot mention, link or format anything."""
    lines = [f"*{_plain(message.title)}*", *(f"- {_plain(line)}" for line in message.lines)]
    if message.link is not None:
        lines.append(f"<{message.link}|open the run>")
    return "\n".join(lines)


def alerts_of(message: Message, now: float) -> list[dict[str, Any]]:
    """Return an incident as alerts of Alertmanager's API, version 2.

    The labels identify an alert, so they stay the same while it lasts. An incident whose severity
    rises becomes another alert, and the milder one ends.
    """
    incident = message.incident
    ends = now + STANDS_SECONDS
    if message.status == "resolved":
        ends = min(now, incident.resolved_at or now)
    worst = rank(incident.severity)
    milder = sorted(
        {rank(entry.severity) for entry in incident.entries if rank(entry.severity) < worst}
    )
    over = [_alert(message, SEVERITIES[each], now) for each in milder]
    return [*over, _alert(message, incident.severity, ends)]


def _alert(message: Message, severity: str, ends: float) -> dict[str, Any]:
    incident, named = message.incident, head(message.incident, severity)
    labels = {
        "alertname": "Snc" + "".join(part.capitalize() for part in named.rule.split("_")),
        "source": "snc",
        "run": incident.run,
        "project": incident.project,
        "rule": named.rule,
        "severity": severity,
        "incident": str(incident.id),
    }
    if named.layer:
        labels["layer"] = named.layer
    told = {"summary": message.title, "description": "\n".join(message.lines)}
    if incident.acknowledged_by:
        told["acknowledged_by"] = incident.acknowledged_by
    alert: dict[str, Any] = {
        "labels": labels,
        "annotations": told,
        "startsAt": rfc3339(incident.opened_at),
        "endsAt": rfc3339(max(ends, incident.opened_at)),
    }
    return alert if message.link is None else {**alert, "generatorURL": message.link}


def _each(message: Message) -> list[Message]:
    """Return a message per incident: Alertmanager groups by itself, and must know them all."""
    alone = replace(message, others=())
    return [
        alone,
        *(
            replace(
                alone, incident=other, status="resolved" if other.state == "resolved" else "firing"
            )
            for other in message.others
        ),
    ]


def _basic(receiver: Alertmanager) -> dict[str, str]:
    if receiver.username is None:
        return {}
    login = f"{receiver.username}:{receiver.password}".encode()
    return {"Authorization": f"Basic {base64.b64encode(login).decode()}"}


def _plain(text: str) -> str:
    # The zero-width space keeps "@channel" from calling a channel where names are not escaped, an
    # address from becoming a link, and marks from setting what follows in another style.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = _MARKUP.sub("\\g<0>\N{ZERO WIDTH SPACE}", escaped)
    return escaped.replace("://", ":\N{ZERO WIDTH SPACE}//")


def _bytes(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
