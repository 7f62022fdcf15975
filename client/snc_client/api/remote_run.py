"""`RemoteRun`: one run of a service, its histories, events, exports and figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from snc_client.api.arrays import HeatmapArrays, History, heatmap_of, history_of
from snc_client.api.connection import ApiConnection
from snc_client.api.records import (
    EventRecord,
    IncidentRecord,
    LayerRecord,
    OnsetRecord,
    RunDescription,
    RunRecord,
)

if TYPE_CHECKING:
    import plotly.graph_objects

LAYERS_PER_REQUEST = 50
FORMATS = ("parquet", "csv")


class RemoteRun:
    """A run of a service, as `Api.run` and `Api.runs` return it.

    ``record`` is the run as it was when it was requested. All methods ask the service anew.
    ``from_step`` and ``to_step`` are inclusive. ``attempt`` selects an earlier attempt of a job
    that went back to older steps. Raises `ApiError` where the service refuses.
    """

    def __init__(self, connection: ApiConnection, record: RunRecord) -> None:
        self._connection = connection
        self.record = record

    def __repr__(self) -> str:
        return f"RemoteRun({self.id!r}, state={self.state!r}, last_step={self.last_step})"

    @property
    def id(self) -> str:
        """The run's id: ``SNCallback(run=...)``."""
        return self.record["run"]

    @property
    def name(self) -> str:
        """The run's name, for people."""
        return self.record["name"]

    @property
    def project(self) -> str:
        """The run's project."""
        return self.record["project"]

    @property
    def state(self) -> str:
        """``active``, ``silent``, ``finished`` or ``failed``."""
        return self.record["state"]

    @property
    def last_step(self) -> int | None:
        """The newest step, None before the first."""
        return self.record["last_step"]

    @property
    def worst_ratio(self) -> float | None:
        """The largest sigma / threshold of the newest values, None without a threshold."""
        return self.record["worst_ratio"]

    @property
    def tags(self) -> list[str]:
        """The run's tags."""
        return self.record["tags"]

    def describe(self) -> RunDescription:
        """Return the run with its config and the names of its metrics and scalars."""
        return cast(RunDescription, self._connection.get("runs", self.id))

    def layers(self, *, sort: str = "-ratio") -> list[LayerRecord]:
        """Return the newest values of all layers, the worst first.

        ``sort``: ``-ratio``, ``ratio``, ``-sigma``, ``sigma``, or ``model`` for the model's order.
        """
        return list(self._connection.items("runs", self.id, "layers", sort=sort))

    def history(
        self,
        layer: str,
        *,
        metric: str = "sigma",
        from_step: int = 0,
        to_step: int | None = None,
        points: int = 1_000,
        attempt: int | None = None,
    ) -> History:
        """Return one metric of one layer: exact if it fits in ``points`` (at most 10,000)."""
        answer = self._connection.get(
            *("runs", self.id, "layers", layer, "history"),
            metric=metric,
            from_step=from_step,
            to_step=to_step,
            points=points,
            attempt=attempt,
        )
        return history_of(answer, answer, layer=layer, metric=metric)

    def histories(
        self,
        layers: Sequence[str],
        *,
        metric: str = "sigma",
        from_step: int = 0,
        to_step: int | None = None,
        points: int = 1_000,
        attempt: int | None = None,
    ) -> dict[str, History]:
        """Return one metric of several layers by name: one request per 50 layers.

        ``points`` is at most 2,000.
        """
        found = {}
        for start in range(0, len(layers), LAYERS_PER_REQUEST):
            answer = self._connection.get(
                *("runs", self.id, "history"),
                layer=list(layers[start : start + LAYERS_PER_REQUEST]),
                metric=metric,
                from_step=from_step,
                to_step=to_step,
                points=points,
                attempt=attempt,
            )
            for each in answer["layers"]:
                name = str(each["layer"])
                found[name] = history_of(answer, each, layer=name, metric=metric)
        return found

    def scalars(
        self,
        scalar: str = "loss",
        *,
        from_step: int = 0,
        to_step: int | None = None,
        points: int = 1_000,
        attempt: int | None = None,
    ) -> History:
        """Return a scalar such as ``loss`` or ``lr``; empty if the run never reported it."""
        answer = self._connection.get(
            *("runs", self.id, "scalars", scalar, "history"),
            from_step=from_step,
            to_step=to_step,
            points=points,
            attempt=attempt,
        )
        return history_of(answer, answer, layer=None, metric=scalar)

    def heatmap(
        self,
        *,
        metric: str = "sigma",
        from_step: int = 0,
        to_step: int | None = None,
        points: int = 500,
        layers: int = 500,
        attempt: int | None = None,
    ) -> HeatmapArrays:
        """Return one metric of all layers; ``ratio`` and ``ratio_after`` are sigma / threshold.

        ``points`` and ``layers`` are the largest numbers of columns and rows, at most 1,000.
        """
        return heatmap_of(
            self._connection.get(
                *("runs", self.id, "heatmap"),
                metric=metric,
                from_step=from_step,
                to_step=to_step,
                points=points,
                layers=layers,
                attempt=attempt,
            )
        )

    def events(
        self,
        *,
        rule: str | None = None,
        severity: str | None = None,
        layer: str | None = None,
        from_step: int | None = None,
    ) -> list[EventRecord]:
        """Return the events of the run, the newest first."""
        filters = {"rule": rule, "severity": severity, "layer": layer, "from_step": from_step}
        return list(self._connection.items("runs", self.id, "events", **filters))

    def incidents(self, *, state: str | None = None) -> list[IncidentRecord]:
        """Return the incidents of the run, the most severe first, among those the newest."""
        return list(self._connection.items("incidents", run=self.id, state=state, sort="severity"))

    def onset(self) -> list[OnsetRecord]:
        """Return the layers that left their band in the newest incident, the first one first."""
        answer = self._connection.get("runs", self.id, "onset", limit=500)
        return cast("list[OnsetRecord]", answer["items"])

    def export(
        self,
        file: str | os.PathLike[str],
        *,
        format: str | None = None,
        metrics: Sequence[str] = (),
        layers: Sequence[str] = (),
        from_step: int | None = None,
        to_step: int | None = None,
        attempt: int | None = None,
    ) -> Path:
        """Write every stored value to a file, or those of some metrics and layers; return its path.

        ``format`` is ``parquet`` or ``csv``; default: the suffix of ``file``. The file appears when
        it is complete. Raises `ValueError` for another format and `OSError` as usual.
        """
        target = Path(file)
        form = format or target.suffix.removeprefix(".").lower()
        if form not in FORMATS:
            raise ValueError(
                f"format must be parquet or csv, got {form!r} (RemoteRun.export): name the file "
                "run.parquet or run.csv, or give format="
            )
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as out:
                for chunk in self._connection.chunks(
                    *("runs", self.id, "export"),
                    format=form,
                    metric=list(metrics) or None,
                    layer=list(layers) or None,
                    from_step=from_step,
                    to_step=to_step,
                    attempt=attempt,
                ):
                    out.write(chunk)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def plot_heatmap(
        self, *, metric: str | None = None, **window: Any
    ) -> plotly.graph_objects.Figure:
        """Return the heatmap of the page as a plotly figure; ``window`` as for `heatmap`.

        Without ``metric``, sigma / threshold, or sigma if no layer has a threshold.
        """
        from snc_client.api.figures import heatmap_figure

        shown = self.heatmap(metric=metric or "ratio", **window)
        if metric is None and np.isnan(shown.values).all():
            shown = self.heatmap(metric="sigma", **window)
        return heatmap_figure(shown)

    def plot_history(
        self, *layers: str, metric: str = "sigma", **window: Any
    ) -> plotly.graph_objects.Figure:
        """Return the history of layers with their thresholds, as a plotly figure.

        Without a name, the three worst layers: by ratio, else by growth. ``window`` as for
        `histories`.
        """
        from snc_client.api.figures import history_figure

        names = layers or tuple(each["layer"] for each in self.layers()[:3])
        thresholds = (
            self.histories(names, metric="threshold", **window) if metric == "sigma" else {}
        )
        return history_figure(self.histories(names, metric=metric, **window), thresholds)

    def plot_scalar(self, scalar: str = "loss", **window: Any) -> plotly.graph_objects.Figure:
        """Return a scalar as a plotly figure; ``window`` as for `scalars`."""
        from snc_client.api.figures import history_figure

        return history_figure({scalar: self.scalars(scalar, **window)}, {})

    def plot_onset(self) -> plotly.graph_objects.Figure:
        """Return which layers left their band at which step, the first at the top, as a figure."""
        from snc_client.api.figures import onset_figure

        return onset_figure(self.id, self.onset())


def runs_in(runs: Sequence[str | RemoteRun]) -> list[str]:
    """Return the ids of runs."""
    return [run.id if isinstance(run, RemoteRun) else run for run in runs]
