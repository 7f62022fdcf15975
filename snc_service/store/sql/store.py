"""`SqlStore`: the protocol over any `Database`; each method is one transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from snc_service.store.downsampling import planes_for
from snc_service.store.protocol import (
    Advance,
    Buckets,
    EventQuery,
    Extent,
    Latest,
    LayerTableUnknown,
    Outcome,
    Page,
    Piece,
    Run,
    RunState,
    Severity,
    StoredEvent,
    StoredPolicy,
    Submission,
    Window,
    Worst,
)
from snc_service.store.protocol.histories import COLUMNS
from snc_service.store.protocol.records import AuditAction, AuditEntry, StoredCommand, Token
from snc_service.store.sql.alert_store import SqlAlerts
from snc_service.store.sql.compaction.compact import Folder
from snc_service.store.sql.compaction.thinning import thin
from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.ingest.run_cache import RunGone, RunMemory
from snc_service.store.sql.ingest.transaction import ingest
from snc_service.store.sql.queries import history
from snc_service.store.sql.queries.export_scan import scan
from snc_service.store.sql.queries.worst import worst
from snc_service.store.sql.records import audit, commands, deletion, events, policies, runs, tokens
from snc_service.store.sql.records.rule_settings import SqlRules
from snc_service.store.sql.series import latest_values
from snc_service.store.sql.series.latest_scalars import newest_scalars
from snc_service.store.sql.series.layouts import LayerBook, metric_names
from snc_service.wire import CommandAction, LayerTable, Policy


class SqlStore(SqlAlerts, SqlRules):
    """A `Store` whose statements run on the engine it is given, and which it closes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._book = LayerBook()
        self._memory = RunMemory()
        self._folder = Folder(database, self._book)
        deletion.resume(database)

    # Runs
    def create_run(
        self,
        run: str,
        *,
        name: str,
        project: str,
        config: Mapping[str, Any],
        tags: Sequence[str],
        policy: Policy | None,
        now: float,
        author: str = "client",
        quota: int | None = None,
    ) -> tuple[Run, bool]:
        """See `Store.create_run`."""
        with self._database.write() as connection:
            run_id, new = runs.create(
                connection, run, name=name, project=project, config=config, tags=tags, now=now
            )
            if new:
                tokens.claim_run(connection, run_id, author, quota)
            if policy is not None:
                policies.start_with(connection, run_id, policy, author=author, now=now)
            return runs.load(connection, run), new

    def run(self, run: str) -> Run:
        """See `Store.run`."""
        with self._database.read() as connection:
            return runs.load(connection, run)

    def runs(
        self,
        *,
        project: str | None = None,
        state: RunState | None = None,
        limit: int = 100,
        after: tuple[Any, ...] | None = None,
    ) -> Page:
        """See `Store.runs`."""
        with self._database.read() as connection:
            return runs.page(connection, project=project, state=state, limit=limit, after=after)

    def finish_run(self, run: str, state: Literal["finished", "failed"], now: float) -> Run:
        """See `Store.finish_run`."""
        with self._database.write() as connection:
            commands.void(connection, runs.lock(connection, run), now)
            return runs.finish(connection, run, state, now)

    def mark_silent(self, before: float, now: float) -> list[StoredEvent]:
        """See `Store.mark_silent`."""
        with self._database.write() as connection:
            return runs.mark_silent(connection, before, now)

    def delete_run(self, run: str, *, author: str = "", now: float | None = None) -> None:
        """See `Store.delete_run`."""
        now = time.time() if now is None else now
        deletion.delete(self._database, run, author=author, now=now)

    def prune(self, before: float) -> list[str]:
        """See `Store.prune`."""
        return deletion.prune(self._database, before)

    def shrink(self, most_bytes: int) -> list[str]:
        """See `Store.shrink`."""
        return deletion.shrink(self._database, most_bytes)

    def thin(self, before: float, now: float) -> list[str]:
        """See `Store.thin`."""
        return thin(self._database, before, now)

    # Ingest
    def put_layer_table(self, run: str, table: LayerTable) -> None:
        """See `Store.put_layer_table`."""
        with self._database.write() as connection:
            self._book.put(connection, runs.lock(connection, run), table)

    def layer_table(self, run: str, table_hash: str) -> LayerTable | None:
        """See `Store.layer_table`."""
        with self._database.read() as connection:
            try:
                return self._book.table(connection, runs.number(connection, run), table_hash).table
            except LayerTableUnknown:
                return None

    def ingest(self, items: Sequence[Submission], advance: Advance) -> list[Outcome]:
        """See `Store.ingest`."""
        while True:
            try:
                with self._database.write() as connection:
                    outcomes, works, mark = ingest(
                        connection, self._book, self._memory, items, advance
                    )
            except RunGone:  # again, with nothing remembered
                continue
            self._memory.keep(works, mark)
            return outcomes

    # Reads
    def latest(self, run: str) -> Latest:
        """See `Store.latest`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            layers = self._book.specs(connection, run_id)
            now = latest_values.merged(len(layers), latest_values.load(connection, run_id).values())
            return Latest(layers, now.steps, now.metrics, now.values)

    def metrics(self, run: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `Store.metrics`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return (
                metric_names(connection, run_id, "layer"),
                metric_names(connection, run_id, "run"),
            )

    def newest_scalars(self, run: str, from_step: int, most: int) -> Mapping[str, float]:
        """See `Histories.newest_scalars`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return newest_scalars(connection, self._book, run_id, from_step, most)

    def history(
        self,
        run: str,
        metric: str,
        layers: Sequence[str],
        window: Window,
        *,
        columns: Collection[str] = COLUMNS,
    ) -> Buckets:
        """See `Histories.history`."""
        planes = planes_for(columns)
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return history.of_layers(connection, self._book, run_id, metric, layers, window, planes)

    def scalar_history(self, run: str, scalar: str, window: Window) -> Buckets:
        """See `Store.scalar_history`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return history.of_scalar(connection, self._book, run_id, scalar, window)

    def heatmap(
        self,
        run: str,
        metric: str,
        window: Window,
        layers: int,
        *,
        columns: Collection[str] = COLUMNS,
    ) -> Buckets:
        """See `Histories.heatmap`."""
        planes = planes_for(columns)
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return history.of_all_layers(
                connection, self._book, run_id, metric, window, layers, planes
            )

    def worst(
        self, run: str, metric: str, window: Window, most: int, *, below: str | None = None
    ) -> list[Worst]:
        """See `Histories.worst`."""
        with self._database.read() as connection:
            run_id = runs.number(connection, run)
            return worst(connection, self._book, run_id, metric, window, most, below=below)

    def scan(self, run: str, extent: Extent) -> Iterator[Piece]:
        """See `Histories.scan`."""
        return scan(self._database, self._book, run, extent)

    def events(self, query: EventQuery) -> Page:
        """See `Store.events`."""
        with self._database.read() as connection:
            run_id = None if query.run is None else runs.number(connection, query.run)
            return events.page(connection, query, run_id)

    def event_counts(self) -> Mapping[tuple[str, str, Severity], int]:
        """See `Store.event_counts`."""
        with self._database.read() as connection:
            return events.counts(connection)

    # Policy
    def policy(self, run: str) -> StoredPolicy:
        """See `Store.policy`."""
        with self._database.read() as connection:
            return policies.of_run(connection, runs.number(connection, run))

    def put_policy(
        self, run: str, policy: Policy, *, author: str, now: float, if_version: int | None
    ) -> StoredPolicy:
        """See `Store.put_policy`."""
        with self._database.write() as connection:
            return policies.put_for_run(
                connection, run, policy, author=author, now=now, if_version=if_version
            )

    def policy_versions(self, run: str) -> list[StoredPolicy]:
        """See `Store.policy_versions`."""
        with self._database.read() as connection:
            return policies.versions_of_run(connection, runs.number(connection, run))

    def project_policy(self, project: str) -> StoredPolicy:
        """See `Store.project_policy`."""
        with self._database.read() as connection:
            return policies.of_project(connection, project)

    def put_project_policy(
        self, project: str, policy: Policy, *, author: str, now: float, if_version: int | None
    ) -> StoredPolicy:
        """See `Store.put_project_policy`."""
        with self._database.write() as connection:
            return policies.put_for_project(
                connection, project, policy, author=author, now=now, if_version=if_version
            )

    def project_policy_versions(self, project: str) -> list[StoredPolicy]:
        """See `Store.project_policy_versions`."""
        with self._database.read() as connection:
            return policies.versions_of_project(connection, project)

    # People
    def add_token(self, token: Token) -> None:
        """See `Records.add_token`."""
        with self._database.write() as connection:
            tokens.add(connection, token)

    def tokens(self) -> list[Token]:
        """See `Records.tokens`."""
        with self._database.read() as connection:
            return tokens.every(connection)

    def revoke_token(self, name: str, *, author: str, now: float) -> Token:
        """See `Records.revoke_token`."""
        with self._database.write() as connection:
            return tokens.revoke(connection, name, author=author, now=now)

    def project_of(self, run: str) -> str:
        """See `Records.project_of`."""
        with self._database.read() as connection:
            return runs.project(connection, run)

    def add_command(
        self, run: str, action: CommandAction, reason: str, *, author: str, now: float
    ) -> StoredCommand:
        """See `Records.add_command`."""
        with self._database.write() as connection:
            return commands.add(connection, run, action, reason, author=author, now=now)

    def commands(self, run: str) -> list[StoredCommand]:
        """See `Records.commands`."""
        with self._database.read() as connection:
            return commands.every(connection, runs.number(connection, run))

    def audit(
        self,
        *,
        author: str | None = None,
        action: AuditAction | None = None,
        subject: str | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> tuple[list[AuditEntry], int | None]:
        """See `Records.audit`."""
        with self._database.read() as connection:
            return audit.page(
                connection, author=author, action=action, subject=subject, limit=limit, after=after
            )

    # Itself
    def fold(self, budget_s: float, *, now: float) -> int:
        """See `Store.fold`."""
        return self._folder.fold(budget_s, now)

    def ping(self) -> None:
        """See `Store.ping`."""
        with self._database.read() as connection:
            connection.execute("select 1").fetchone()

    def size_bytes(self) -> int:
        """See `Store.size_bytes`."""
        return self._database.size_bytes()

    def close(self) -> None:
        """See `Store.close`."""
        self._database.close()
