"""Mutated configurations for `bench/service/fuzz.py`: what is accepted is read back as it was."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_mutations import changed

from snc_service.alerts.document import Alerting
from snc_service.api.alerting.silences import SilenceRequest
from snc_service.api.ingest.body import parse_json
from snc_service.api.runs.annotation import AnnotationRequest
from snc_service.api.runs.commands import CommandRequest
from snc_service.api.runs.run_creation import RunRequest
from snc_service.api.security.session import SessionRequest
from snc_service.api.security.tokens import TokenRequest
from snc_service.problems import Problem
from snc_service.settings import Settings, SettingsError
from snc_service.wire import Command, LayerTable, Policy, RuleSettings, WireError

ALERTING = {
    "service_url": "https://snc.example.org",
    "receivers": {
        "hook": {"type": "webhook", "url": "https://h.example.org/x", "secret": "s" * 20},
        "slack": {"type": "slack", "url": "https://hooks.slack.com/services/T/B/X"},
        "am": {"type": "alertmanager", "url": "http://am:9093", "username": "u", "password": "p"},
        "mail": {"type": "email", "host": "mail.example.org", "from": "a@example.org",
                 "to": ["b@example.org"], "security": "starttls", "port": 587},
    },
    "routes": [{"project": "*", "severity": "warning", "receivers": ["hook", "mail"],
                "rules": ["breach", "sigma_*"], "repeat_seconds": 3600, "resolved": True}],
}  # fmt: skip
POLICY = {
    "entries": [
        {"pattern": "*.weight", "threshold": "3x init", "action": "rescale"},
        {"pattern": "*", "threshold": 2.0, "action": "observe"},
        {"pattern": "fc[12].*", "threshold": None},
    ]
}
RULES = {"rules": {"sigma_jump": {"limit": 0.2, "for_rows": 2, "armed": 5, "severity": "warning"},
                   "lr_jump": {"on": False}}}  # fmt: skip
ENVIRONMENT = {
    "SNC_STORE": "sqlite:///snc.db", "SNC_HOST": "0.0.0.0", "SNC_PORT": "80",
    "SNC_ALLOWED_HOSTS": "a.example.org,b", "SNC_PUBLIC_HOST": "a:1", "SNC_KEEP_DAYS": "1.5",
    "SNC_ALERT_NETWORKS": "10.0.0.0/8", "SNC_INSECURE": "1", "SNC_RUN_METRICS": "9",
}  # fmt: skip


def _written(kind: Any, document: Any, name: str = "as_dict") -> None:
    read = kind.parse(document)
    assert kind.parse(json.loads(json.dumps(getattr(read, name)()))) == read, document


def _table(document: Any) -> None:
    table = LayerTable.parse(json.dumps(document).encode("utf-8", "replace"))
    assert LayerTable.parse(table.body) == table


def _model(model: Any) -> Callable[[Any], None]:
    def read(document: Any) -> None:
        text = json.dumps(document).encode("utf-8", "replace")
        found = parse_json(model, text)
        assert parse_json(model, found.model_dump_json().encode()) == found

    return read


def _settings(document: Any) -> None:
    if isinstance(document, dict):
        Settings.from_env({str(key): str(value) for key, value in document.items()})


KINDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "policy": (POLICY, lambda document: _written(Policy, document)),
    "rule settings": (RULES, lambda document: _written(RuleSettings, document)),
    "routing of alerts": (ALERTING, lambda document: _written(Alerting, document)),
    "commands": (
        [{"id": 1, "action": "pause", "reason": "why"}, {"id": 2, "action": "stop", "reason": ""}],
        lambda document: Command.parse_all(document) and None,
    ),
    "layer table": ({"layers": [{"name": "a", "kind": "linear", "shape": [3, 4]}]}, _table),
    "run": (
        {"run": "r", "name": "n", "project": "p", "tags": ["a"], "config": {"lr": 0.1, "x": [1]},
         "policy": POLICY},
        _model(RunRequest),
    ),
    "token": (
        {"name": "t", "scopes": ["read"], "project": "p", "expires_at": "2100-01-01T00:00:00Z"},
        _model(TokenRequest),
    ),
    "session": ({"token": "snc_" + "0" * 12 + "_" + "0" * 48}, _model(SessionRequest)),
    "annotation": ({"step": 5, "text": "lr drop", "quiet_steps": 9}, _model(AnnotationRequest)),
    "command": ({"action": "pause", "reason": "why"}, _model(CommandRequest)),
    "silence": (
        {"project": "p", "run": "r*", "rule": "*", "layer": "*", "seconds": 9.5, "comment": "c"},
        _model(SilenceRequest),
    ),
    "settings": (ENVIRONMENT, _settings),
}  # fmt: skip


def configurations(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    told: Counter[str] = Counter()
    for _ in range(count):
        name = rng.choice(list(KINDS))
        sound, read = KINDS[name]
        document = changed(sound, rng)
        try:
            read(document)
            told[f"{name}: accepted"] += 1
        except (WireError, SettingsError):
            told[f"{name}: refused"] += 1
        except Problem as problem:
            if problem.status_code >= 500:
                raise
            told[f"{name}: refused"] += 1
        except Exception:
            print(f"{name}: {document!r}"[:2_000], file=sys.stderr)
            raise
    return told
