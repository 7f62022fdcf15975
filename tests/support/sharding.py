"""A lint for statements: does each ask the one node on which its run lies?

It knows the dialect that `snc_service.store.sql` is written in, not all of SQL: tables have no
aliases, and a column of another table is qualified.
"""

from __future__ import annotations

import re
import sys

from snc_service.store.engines.postgres import translated
from snc_service.store.sql.database import citus

# Statements that are about many runs: the nodes are asked all at once. Each is short, or runs in
# the background. A pattern is found at the start of a statement; the reason is for the reader.
CROSS_SHARD: dict[str, str] = {
    r"select run\.run, run\.name, .* from run join run_config": "lists runs, page by page",
    r"select run\.state, count": "counts runs by state, for a query",
    r"select distinct (run|run_term)\.": "lists the projects, tags and config names of all runs",
    r"select run_id, sum\(\w+(\(v\))?\) from (tile|tail) group by": "adds up the size of each run",
    r"select run(, run_id)? from run where state in": "looks for runs old enough to delete",
    r"select run_id from run where state = 'active'": "looks for runs that have gone silent",
    r"select run\.run, event\.run_id, event\.id": "lists events of all runs, page by page",
    r"select run\.run, event_count\.rule": "counts events for /metrics, one row per run and rule",
    r"select run_id from run where run_id > ": "looks through all runs, page by page",
    r"select count\(\*\) from damage": "counts what is known to be damaged, for /metrics",
    r"select run\.run_id, run\.next_event - 1": "looks for runs with more events than are kept",
    r"select run_id, interval_shift, tail_first": "looks for runs of which something is due",
    r"select run_id from run where tail_first is null": "looks for tails without a summary",
    r"select 1 from alert_outbox": "looks whether there is any event to tell of",
    r"select event\.run_id, event\.id, .* from alert_outbox": "takes events on their way to alerts",
    r"select incident\.id, incident\.revision": "looks at the index of open incidents",
    r"select incident\.id, run\.run": "shows incidents with the names of their runs",
    r"select run\.run, run\.project, max\(case": "looks for runs that a receiver is to be told of",
    r"select delivery\.incident, receiver, .* from delivery": "looks for what it is to be told",
}

_TABLE = re.compile(r"\b(?:from|join|into|update) (\w+)")
_INNER = re.compile(r"\((select\b[^()]*(?:\([^()]*\)[^()]*)*)\)")
_BOUND = re.compile(r"(?:\b(\w+)\.)?\brun_id = (?:%s|\?|\d+)")
_JOINED = re.compile(r"\b(\w+)\.run_id = (\w+)\.run_id")


asked: set[str] = set()  # of PostgreSQL by the store, not by a test that looks inside


def recorded(statement: str) -> str:
    """Do what the engine's ``translated`` does, and remember the statement."""
    if sys._getframe(2).f_globals["__name__"].startswith("snc_service.store.sql."):
        asked.add(statement)
    return translated(statement)


def misfit(statement: str) -> str | None:
    """Return the table whose rows a statement would look for on every node; None: it fits."""
    text = " ".join(statement.split())
    if any(re.match(pattern, text) for pattern in CROSS_SHARD):
        return None
    while inner := _INNER.search(text):
        if (table := _misfit_alone(inner[1])) is not None:
            return table
        text = text[: inner.start()] + "(?)" + text[inner.end() :]
    return _misfit_alone(text)


def _misfit_alone(text: str) -> str | None:
    """Look at one select, insert, update or delete without any inside it."""
    tables = {table for table in _TABLE.findall(text) if table in citus.distributed()}
    bound = {table or None for table in _BOUND.findall(text)}
    if into := re.match(r"insert into (\w+) \(run_id, [^)]*\) (values \(|select )(\?|%s),", text):
        bound.add(into[1])
    if into := re.match(r"insert into (\w+) \(run_id\) values \((\?|%s)\)", text):
        bound.add(into[1])
    if None in bound and len(tables) == 1:
        return None
    # `insert into t ... select ..., from t where run_id = ?` names a single table, twice.
    for _ in tables:
        for one, other in _JOINED.findall(text):
            if one in bound or other in bound:
                bound |= {one, other}
    return next(iter(sorted(tables - bound)), None)
