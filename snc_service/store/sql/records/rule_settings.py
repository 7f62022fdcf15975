"""`SqlRules`: rule settings by version, a run's own before its project's, and annotations."""

from __future__ import annotations

import json

from snc_service.store.protocol import Event, RulesConflict, TooManyAnnotations
from snc_service.store.protocol.rule_settings import MAX_ANNOTATIONS, Annotation, StoredRules
from snc_service.store.sql.database.dialect import Connection, Database, Row
from snc_service.store.sql.records import audit, events, runs
from snc_service.wire import RuleSettings

NO_RULES = StoredRules(RuleSettings(), 0, "none", "", 0.0)
_RUN = "select body, version, 'run', author, at from run_rules where run_id = ?"
_PROJECT = "select body, version, 'project', author, at from project_rules where project = ?"
_NEWEST = "order by version desc"
ANNOTATIONS = (
    "select id, step, quiet_steps, text, author, at from annotation where run_id = ? order by id"
)


class SqlRules:
    """A `RuleStore` over ``_database``; each method is one transaction."""

    _database: Database

    def rules(self, run: str) -> StoredRules:
        """See `RuleStore.rules`."""
        with self._database.read() as connection:
            return rules_of_run(connection, runs.number(connection, run))

    def put_rules(
        self, run: str, settings: RuleSettings, *, author: str, now: float, if_version: int | None
    ) -> StoredRules:
        """See `RuleStore.put_rules`."""
        with self._database.write() as connection:
            run_id = runs.lock(connection, run)
            version = _next(rules_of_run(connection, run_id).version, if_version)
            connection.execute(
                "insert into run_rules (run_id, version, body, author, at) values (?, ?, ?, ?, ?)",
                (run_id, version, json.dumps(settings.changes()), author, now),
            )
            message = f"rule settings version {version} by {author or 'nobody named'}"
            _tell(connection, run_id, run, "rules_changed", message, float(version), now)
            audit.append(
                connection,
                "run_rules_changed",
                run,
                author=author,
                now=now,
                detail=f"version {version}",
            )
            return StoredRules(settings, version, "run", author, now)

    def rule_versions(self, run: str) -> list[StoredRules]:
        """See `RuleStore.rule_versions`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return [_stored(row) for row in connection.execute(f"{_RUN} {_NEWEST}", (run_id,))]

    def project_rules(self, project: str) -> StoredRules:
        """See `RuleStore.project_rules`."""
        with self._database.read() as connection:
            return _of_project(connection, project)

    def put_project_rules(
        self,
        project: str,
        settings: RuleSettings,
        *,
        author: str,
        now: float,
        if_version: int | None,
    ) -> StoredRules:
        """See `RuleStore.put_project_rules`."""
        with self._database.write() as connection:
            inserted = 0
            while not inserted:  # again if another process took the same version
                version = _next(_of_project(connection, project).version, if_version)
                inserted = connection.execute(
                    "insert into project_rules (project, version, body, author, at) "
                    "values (?, ?, ?, ?, ?) on conflict (project, version) do nothing",
                    (project, version, json.dumps(settings.changes()), author, now),
                ).rowcount
            audit.append(
                connection,
                "project_rules_changed",
                project,
                author=author,
                now=now,
                detail=f"version {version}",
            )
            return StoredRules(settings, version, "project", author, now)

    def project_rule_versions(self, project: str) -> list[StoredRules]:
        """See `RuleStore.project_rule_versions`."""
        with self._database.read() as connection:
            return [_stored(row) for row in connection.execute(f"{_PROJECT} {_NEWEST}", (project,))]

    def annotate(
        self, run: str, step: int, text: str, quiet_steps: int, *, author: str, now: float
    ) -> Annotation:
        """See `RuleStore.annotate`."""
        with self._database.write() as connection:
            run_id = runs.lock(connection, run)
            number = len(annotations_of(connection, run_id)) + 1
            if number > MAX_ANNOTATIONS:
                raise TooManyAnnotations(
                    f"a run has at most {MAX_ANNOTATIONS} annotations, and {run} has them all"
                )
            made = Annotation(number, step, quiet_steps, text, author, now)
            connection.execute(
                "insert into annotation (run_id, id, step, quiet_steps, text, author, at) "
                "values (?, ?, ?, ?, ?, ?, ?)",
                (run_id, number, step, quiet_steps, text, author, now),
            )
            _tell(connection, run_id, run, "annotation", text, float(quiet_steps), now, step)
            return made

    def annotations(self, run: str) -> list[Annotation]:
        """See `RuleStore.annotations`."""
        with self._database.read() as connection:
            return annotations_of(connection, runs.number(connection, run))

    def rule_state(self, run: str) -> bytes | None:
        """See `RuleStore.rule_state`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            row = connection.execute(
                "select v from rule_state where run_id = ?", (run_id,)
            ).fetchone()
            return None if row is None else bytes(row[0])


def rules_of_run(connection: Connection, run_id: int) -> StoredRules:
    """Return the settings in force: the run's own, else its project's, else version 0."""
    own = connection.execute(f"{_RUN} {_NEWEST} limit 1", (run_id,)).fetchone()
    if own is not None:
        return _stored(own)
    (project,) = connection.execute(
        "select project from run where run_id = ?", (run_id,)
    ).fetchone()
    return _of_project(connection, project)


def annotations_of(connection: Connection, run_id: int) -> list[Annotation]:
    """Return a run's annotations, the oldest first."""
    return [Annotation(*row) for row in connection.execute(ANNOTATIONS, (run_id,))]


def _of_project(connection: Connection, project: str) -> StoredRules:
    row = connection.execute(f"{_PROJECT} {_NEWEST} limit 1", (project,)).fetchone()
    return NO_RULES if row is None else _stored(row)


def _tell(
    connection: Connection,
    run_id: int,
    run: str,
    rule: str,
    message: str,
    value: float,
    now: float,
    step: int | None = None,
) -> None:
    """Append an event that a person caused."""
    if step is None:
        step = runs.load(connection, run).last_step or 0
    event = Event(step=step, rule=rule, severity="info", message=message, value=value)
    events.append_to(connection, run_id, run, [event], now)


def _next(current: int, if_version: int | None) -> int:
    if if_version is not None and if_version != current:
        raise RulesConflict(current)
    return current + 1


def _stored(row: Row) -> StoredRules:
    body, version, scope, author, at = row
    return StoredRules(RuleSettings.parse(json.loads(body)), version, scope, author, at)
