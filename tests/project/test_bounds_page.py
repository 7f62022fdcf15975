"""The bounds on the page of operations are those in the code."""

from __future__ import annotations

import re
from pathlib import Path

from snc_client.sender import allowance, http
from snc_service import group_commit
from snc_service.alerts import document, incidents, post, worker
from snc_service.api.history import export
from snc_service.api.runs import run_creation
from snc_service.api.security import authentication, session
from snc_service.cli.commands.serve import MAX_CONNECTIONS
from snc_service.cli.server import bounded_connection
from snc_service.store.engines import sqlite_connection
from snc_service.store.types import records
from snc_service.wire import MAX_COLUMNS, MAX_STEPS, checks, policy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
KIB = 1024
BOUNDS = {
    "connections": [MAX_CONNECTIONS],
    "request line with headers": [
        bounded_connection.HEAD_BYTES // KIB,
        bounded_connection.HEADERS,
        bounded_connection.PATH_BYTES // KIB,
    ],
    "requests sent ahead on one connection": [bounded_connection.PIPELINED],
    "parameters of a URL": [authentication.MAX_PARAMETERS],
    "time for a head to arrive": [bounded_connection.HEAD_SECONDS],
    "body of a login": [session.MAX_BYTES],
    "batches that wait to be stored": [group_commit.MAX_WAITING],
    "exports at once": [export.MOST_EXPORTS, export.MOST_OF_ONE_TOKEN],
    "one query of an SQLite store": [sqlite_connection.MOST_SNAPSHOT_SECONDS],
    "an answer of which the client takes nothing": [bounded_connection.ANSWER_SECONDS],
    "steps, and metrics with scalars, of a batch": [MAX_STEPS, MAX_COLUMNS],
    "names of layers, and of writers": [checks.MAX_LAYER_NAME_BYTES, checks.MAX_WRITER_BYTES],
    "configuration of a run": [run_creation.MAX_CONFIG_BYTES // KIB, 64],
    "entries of a policy": [policy.MAX_ENTRIES],
    "commands that a job has not received": [records.MAX_WAITING_COMMANDS],
    "receivers and routes of alerts": [document.MAX_RECEIVERS, document.MAX_ROUTES],
    "incidents in one digest, events in one incident": [
        worker.DIGEST_INCIDENTS,
        incidents.MAX_ENTRIES,
    ],
    "a message to a receiver": [post.DEADLINE_SECONDS],
    "in the job: an answer, and one that counts as large": [
        http.MAX_ANSWER_BYTES // KIB**2,
        http.SMALL_ANSWER_BYTES // KIB,
    ],
    "in the job: policies, and large answers": [allowance.PAUSES],
}


def test_the_bounds_without_a_setting_are_those_of_the_code():
    part = PAGE.read_text().partition("### Bounds without a setting")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", part, re.MULTILINE)
    told = {what: [float(number) for number in re.findall(r"\d+", text)] for what, text in rows}
    told.pop("what", None)
    assert told == BOUNDS
