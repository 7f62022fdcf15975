"""The bounds on the page of operations are those in the code."""

from __future__ import annotations

import re
from pathlib import Path

from snc_client.sender import allowance, http
from snc_service import group_commit
from snc_service.alerts import document, incidents, plan, post, receivers, worker
from snc_service.api.alerting import silences
from snc_service.api.history import export, heatmap
from snc_service.api.runs import annotation, query_language, run_changes, run_creation, runs, stream
from snc_service.api.security import authentication, session
from snc_service.cli.commands.serve import MAX_CONNECTIONS
from snc_service.cli.server import bounded_connection
from snc_service.store.engines import connection_pool, sqlite, sqlite_connection
from snc_service.store.sql.ingest import run_cache, run_memory
from snc_service.store.types import records
from snc_service.wire import MAX_COLUMNS, MAX_STEPS, checks, policy, rule_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
KIB, MILLION = 1024, 1_000_000
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
    "layers of one layer table, header of a batch": [
        checks.MAX_LAYERS,
        checks.MAX_HEADER_BYTES // KIB,
    ],
    "a wait for a store that another program writes, for a free connection to PostgreSQL": [
        sqlite.BUSY_SECONDS,
        connection_pool.WAIT_SECONDS,
    ],
    "stars of a pattern, a search and its conditions, config values of a list": [
        query_language.MOST_WILDCARDS,
        query_language.MOST_CHARACTERS,
        query_language.MOST_CONDITIONS,
        runs.MOST_COLUMNS,
    ],
    "note of a run, quiet steps of an annotation": [
        run_changes.MAX_NOTE_BYTES // KIB,
        annotation.MAX_QUIET_STEPS // MILLION,
    ],
    "rows of a rule setting, its `armed`": [
        rule_settings.MAX_FOR_ROWS,
        rule_settings.MAX_ARMED // MILLION,
    ],
    "entries of a policy": [policy.MAX_ENTRIES],
    "commands that a job has not received": [records.MAX_WAITING_COMMANDS],
    "receivers of alerts, and routes": [document.MAX_RECEIVERS, document.MAX_ROUTES],
    "mailboxes of a receiver, and the length of a silence": [
        receivers.MAX_MAILBOXES,
        silences.MAX_SILENCE_SECONDS // 86_400,
    ],
    "incidents in one digest of alerts": [worker.DIGEST_INCIDENTS],
    "events listed in one incident": [incidents.MAX_ENTRIES],
    "time for one message to a receiver": [post.DEADLINE_SECONDS],
    "wait that a receiver may ask for": [plan.MOST_RETRY_AFTER_SECONDS // 3_600],
    "events in one message of a stream": [stream.MAX_EVENTS],
    "layers that ingest remembers, and of one run": [
        run_memory.MOST_LAYERS,
        run_cache.MOST_OF_ONE_RUN,
    ],
    "log beside an SQLite store, unless another program reads": [sqlite.MOST_LOG_BYTES // KIB**2],
    "in the job: size of an answer": [http.MAX_ANSWER_BYTES // KIB**2],
    "in the job: time spent on policies, and on answers above 64 KiB": [100 / allowance.PAUSES],
    "values in a heatmap of ratios": [heatmap.MAX_CELLS // MILLION],
}
# Their bounds are those of parameters in the description of the API, or depend on a shape.
OTHERS = {
    "configuration of a run": run_creation.MAX_CONFIG_BYTES // KIB,
    "rows and columns of a heatmap": 1_000,
    "layers of one history and of an export, points of a history": 50,
    "items of a page, layers of `worst`": 500,
    "layers in parsed layer tables, and in those of batches": 40_000,
    "pages of the file that the writer and each of 8 readers of SQLite keep": 16,
}


def test_the_bounds_without_a_setting_are_those_of_the_code():
    part = PAGE.read_text().partition("### Bounds without a setting")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", part, re.MULTILINE)
    told = {what: _numbers(text) for what, text in rows if what not in ("what", "---")}
    assert {what: told.get(what) for what in BOUNDS} == BOUNDS
    assert {what: told[what][0] for what in told.keys() - BOUNDS.keys()} == OTHERS


def _numbers(text: str) -> list[float]:
    """Return the numbers outside parentheses; thousands are set apart by spaces."""
    plain = re.sub(r"\(.*?\)", "", text).replace("one hour", "1 hour")
    found = re.findall(r"\d+(?: \d{3})*", plain)
    return [float(number.replace(" ", "")) for number in found]
