"""The search for runs: conditions as SQL with parameters, pages in any order, and what there is.

Names of columns come from the tables below. Whatever a user typed is a parameter.
"""

from __future__ import annotations

from typing import Any, Final

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.database.run_terms import TAG
from snc_service.store.sql.records import runs
from snc_service.store.types import Page
from snc_service.store.types.imported import DIGEST, MARK, SECONDS
from snc_service.store.types.run_search import (
    CONFIG,
    Condition,
    NumberCondition,
    RunSearch,
    RunSummary,
    TextCondition,
)

MOST_OFFERED: Final = 200  # projects, tags or config names
_FROM = "from run join run_config on run_config.run_id = run.run_id"
_OPEN = "from incident where incident.run_id = run.run_id and incident.state = 'open'"

_TEXTS: Final = {
    "run": "run.run",
    "name": "run.name",
    "project": "run.project",
    "state": "run.state",
    "worst": "run.worst_layer",
    "note": "run_config.note",
    "ended": runs.ENDED_IN,
}
_ANY: Final = ("run", "name", "project", "state", "worst")
_NUMBERS: Final = {
    "step": "run.last_step",
    "layers": "run.layers",
    "loss": "run.loss",
    "ratio": "run.worst_ratio",
    "breaches": "run.breaches",
    "rescales": "run.rescales",
    "nonfinite": "run.nonfinite_layers",
    "dropped": "run.dropped_values",
    "vetoes": "run.guard_vetoes",
    "overhead": "run.overhead",
    # That of its source for an imported run, if it has times: see `store/types/imported.py`.
    "duration": f"""coalesce((select max(run_term.number) from run_term where
run_term.run_id = run.run_id and run_term.name = '{CONFIG}{MARK}.{SECONDS}'),
case when not exists (select 1 from run_term where run_term.run_id = run.run_id
and run_term.name = '{CONFIG}{MARK}.{DIGEST}') then run.updated_at - run.created_at end)""",
    "incidents": runs.INCIDENTS,
    "attempt": "run.attempt",
}
_UNSEEN = "(run.acknowledged_at is null or run.acknowledged_at < run.updated_at)"
# What went wrong and nobody has taken note of, the worst first.
_ATTENTION: Final = f"""(case
when run.state <> 'active' and {_UNSEEN} and {runs.ENDED_IN} = 'nonfinite' then 7
when run.state <> 'active' and {_UNSEEN} and {runs.ENDED_IN} = 'breach' then 6
when run.state = 'active' and (run.nonfinite_layers > 0 or run.nonfinite_loss > 0) then 5
when exists (select 1 {_OPEN} and incident.severity = 'critical'
and incident.acknowledged_at is null) then 4
when run.state = 'active' and run.worst_ratio > 1 and run.rescales < run.breaches then 3
when run.state = 'failed' and {_UNSEEN} then 2
when exists (select 1 {_OPEN} and incident.acknowledged_at is null) then 1
else 0 end)"""
_ORDERS: Final = _NUMBERS | {
    "attention": _ATTENTION,
    "updated": "run.updated_at",
    "name": "run.name",
    "project": "run.project",
    "state": "run.state",
}

Sql = tuple[str, list[Any]]


def page(connection: Connection, search: RunSearch) -> Page:
    """Return runs in the order of the search; those without the value come last.

    Reads every run of the project for an order other than `created`. A page begins after a run's
    key, so a run that changes between two pages may be shown twice or be left out.
    """
    where, values = _where(search)
    order, key = "run.run_id desc" if search.descending else "run.run_id", "null"
    order_values: list[Any] = []
    if search.order != "created":
        key, order_values = _order(search.order)
        way = "desc" if search.descending else "asc"
        order = f"case when {key} is null then 1 else 0 end, {key} {way}, run.run_id desc"
    if search.after is not None:
        text, more = _after(search, key, order_values)
        where, values = f"{where} and {text}", values + more
    rows = connection.execute(
        f"select {runs.COLUMNS}, {key} {_FROM} where {where} order by {order} limit ?",
        (
            *order_values,
            *values,
            *(order_values * 2 if search.order != "created" else ()),
            search.limit + 1,
        ),
    ).fetchall()
    found = [runs.of_row(row[:-1]) for row in rows[: search.limit]]
    if len(rows) <= search.limit:
        return Page(found, None)
    *_, run_id, last = rows[search.limit - 1]
    return Page(found, (run_id, last))


def summary(connection: Connection, search: RunSearch) -> RunSummary:
    """Count what a search finds by state; list what all runs that it may see offer."""
    where, values = _where(search)
    states = connection.execute(
        f"select run.state, count(*) {_FROM} where {where} group by run.state order by run.state",
        values,
    ).fetchall()
    reach, project = ("run.project = ?", [search.project]) if search.project else ("1 = 1", [])
    projects = connection.execute(
        f"select distinct run.project from run where {reach} order by run.project limit ?",
        (*project, MOST_OFFERED),
    ).fetchall()
    tags = connection.execute(
        "select distinct run_term.value from run_term join run on run.run_id = run_term.run_id "
        f"where run_term.name = ? and {reach} order by run_term.value limit ?",
        (TAG, *project, MOST_OFFERED),
    ).fetchall()
    config = connection.execute(
        "select distinct run_term.name from run_term join run on run.run_id = run_term.run_id "
        f"where run_term.name >= ? and run_term.name < ? and {reach} "
        "order by run_term.name limit ?",
        (CONFIG, CONFIG[:-1] + "/", *project, MOST_OFFERED),  # a slash follows the dot
    ).fetchall()
    return RunSummary(
        {state: int(number) for state, number in states},
        tuple(name for (name,) in projects),
        tuple(tag for (tag,) in tags),
        tuple(name.removeprefix(CONFIG) for (name,) in config),
    )


def _where(search: RunSearch) -> Sql:
    parts: list[str] = ["1 = 1"]
    values: list[Any] = []
    if search.project is not None:
        parts.append("run.project = ?")
        values.append(search.project)
    if search.archived != "any":
        parts.append("run.archived = ?")
        values.append(int(search.archived == "yes"))
    for condition in search.conditions:
        text, more = _condition(condition)
        # Unknown is not true: of a run without a loss, neither loss<1 nor its negation is said.
        parts.append(f"not coalesce({text}, false)" if condition.negated else text)
        values += more
    return " and ".join(parts), values


def _condition(condition: Condition) -> Sql:
    field = condition.field
    if isinstance(condition, NumberCondition):
        return _number(condition)
    if field.startswith(CONFIG):
        return _term(field, condition.pattern)
    if field == "tag":
        return _term(TAG, condition.pattern)
    if field == "any":
        return _any(condition)
    if field == "layer":
        matches, value = _like("layer.name", condition.pattern)
        return f"exists (select 1 from layer where layer.run_id = run.run_id and {matches})", value
    if field == "incident":
        if condition.pattern == "any":
            return f"exists (select 1 {_OPEN})", []
        matches, value = _like("incident.severity", condition.pattern)
        return f"exists (select 1 {_OPEN} and {matches})", value
    return _like(_TEXTS[field], condition.pattern)


def _any(condition: TextCondition) -> Sql:
    matched = [_like(f"coalesce({_TEXTS[name]}, '')", condition.pattern) for name in _ANY]
    matched.append(_term(TAG, condition.pattern))
    text = " or ".join(text for text, _ in matched)
    return f"({text})", [value for _, values in matched for value in values]


def _number(condition: NumberCondition) -> Sql:
    # From the field of a closed list, so no text of a user is in the statement.
    operator = {"!=": "<>"}.get(condition.operator, condition.operator)
    if not condition.field.startswith(CONFIG):
        return f"{_NUMBERS[condition.field]} {operator} ?", [condition.value]
    return (
        "run.run_id in (select run_term.run_id from run_term "
        f"where run_term.name = ? and run_term.number {operator} ?)",
        [condition.field, condition.value],
    )


def _term(name: str, pattern: str) -> Sql:
    matches, values = _like("run_term.value", pattern)
    return (
        "run.run_id in (select run_term.run_id from run_term "
        f"where run_term.name = ? and {matches})",
        [name, *values],
    )


def _like(column: str, pattern: str) -> Sql:
    """Match a pattern; one without a wildcard is compared, which an index can answer."""
    if not set(pattern) & {"*", "?"}:
        return f"{column} = ?", [pattern]
    escaped = "".join(f"!{letter}" if letter in "!%_" else letter for letter in pattern)
    lowered = "".join(c.lower() if c.isascii() else c for c in escaped)
    return f"lower({column}) like ? escape '!'", [lowered.replace("*", "%").replace("?", "_")]


def _order(order: str) -> Sql:
    if not order.startswith(CONFIG):
        return _ORDERS[order], []
    # Of a list, the largest; a text has no number and comes last.
    return (
        "(select max(run_term.number) from run_term "
        "where run_term.run_id = run.run_id and run_term.name = ?)",
        [order],
    )


def _after(search: RunSearch, key: str, order_values: list[Any]) -> Sql:
    """Return what holds for the runs behind the key (number of a run, its value)."""
    run_id, value = search.after or (0, None)
    way = "<" if search.descending else ">"
    if search.order == "created":
        return f"run.run_id {way} ?", [run_id]
    if value is None:
        return f"({key} is null and run.run_id < ?)", [*order_values, run_id]
    return (
        f"({key} is null or {key} {way} ? or ({key} = ? and run.run_id < ?))",
        [*order_values, *order_values, value, *order_values, value, run_id],
    )
