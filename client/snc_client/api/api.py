"""`Api`: the door to a service from Python, without torch and without FastAPI."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, cast

from snc_client.api.arrays import History, history_of
from snc_client.api.connection import ApiConnection
from snc_client.api.records import EventRecord, IncidentRecord, RunRecord
from snc_client.api.remote_run import RemoteRun, runs_in

DEFAULT_URL = "http://127.0.0.1:8470"


class Api:
    """Reads runs of a service.

    ::

        from snc_client import Api

        api = Api()
        for run in api.runs(project="gpt", state="active"):
            print(run.id, run.worst_ratio)
        history = api.run("gpt-small-1").history("blocks.0.query.weight")

    Args:
        url: Address of the service, ``http://host:port``. Default: ``SNC_URL``, else
            ``http://127.0.0.1:8470``.
        token: Bearer token with the scope ``read``. Default: ``SNC_TOKEN``.
        timeout: Seconds to wait for the service each time it is silent.
        retries: How often a request is repeated while the service is unreachable or busy (429,
            502, 503, 504). The first wait is a quarter of a second, each next one twice as long.

    Every method sends requests when it is called; lists are requested page by page while they are
    iterated. An `Api` may be used by several threads. Nothing is cached.

    Raises:
        ValueError: ``url`` is no http or https address.
        ApiError: From every method: the service is unreachable, or refuses the request. ``status``
            is the HTTP status, None if there was no answer.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
    ) -> None:
        self._connection = ApiConnection(
            url or os.environ.get("SNC_URL") or DEFAULT_URL,
            token or os.environ.get("SNC_TOKEN"),
            timeout=timeout,
            retries=retries,
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Api({self._connection.url!r})"

    def close(self) -> None:
        """Close the connections. A closed `Api` cannot be used again."""
        self._connection.close()

    def run(self, run: str) -> RemoteRun:
        """Return a run by its id. Raises `ApiError` (status 404) if there is none."""
        return RemoteRun(self._connection, cast(RunRecord, self._connection.get("runs", run)))

    def runs(
        self,
        *,
        project: str | None = None,
        state: str | None = None,
        tags: Sequence[str] = (),
    ) -> Iterator[RemoteRun]:
        """Yield runs, the newest first; with ``tags`` those that have every one of them.

        ``state`` is ``active``, ``silent``, ``finished`` or ``failed``.
        """
        wanted = set(tags)
        for record in self._connection.items("runs", project=project, state=state):
            if wanted.issubset(record["tags"]):
                yield RemoteRun(self._connection, record)

    def events(
        self, *, rule: str | None = None, severity: str | None = None
    ) -> Iterator[EventRecord]:
        """Yield the events of all runs, the newest first."""
        return self._connection.items("events", rule=rule, severity=severity)

    def incidents(
        self,
        *,
        state: str | None = None,
        project: str | None = None,
        severity: str | None = None,
    ) -> Iterator[IncidentRecord]:
        """Yield the incidents of all runs, the most severe first, among those the newest."""
        filters: dict[str, Any] = {"state": state, "project": project, "severity": severity}
        return self._connection.items("incidents", sort="severity", **filters)

    def compare(
        self,
        runs: Sequence[str | RemoteRun],
        layer: str,
        *,
        metric: str = "sigma",
        points: int = 500,
    ) -> dict[str, History]:
        """Return the history of one layer in several runs, by run id; runs without it are absent.

        Raises `ApiError` (status 404) if no run has such a layer.
        """
        answer = self._connection.get(
            "compare", run=runs_in(runs), layer=layer, metric=metric, points=points
        )
        return {
            str(each["run"]): history_of(each, each, layer=layer, metric=metric)
            for each in answer["runs"]
        }
