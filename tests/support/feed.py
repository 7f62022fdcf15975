"""A run with known values, sent as the binary wire form to a real service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from snc_service.wire import MEDIA_TYPE, Batch, LayerSpec, LayerTable, encode

MOST_STEPS = 500  # per batch


class Feed:
    """Creates run ``run`` with these layers; `send` appends rows to it."""

    def __init__(self, url: str, run: str, layers: Sequence[str], **body: Any) -> None:
        self.address = f"{url}/api/v1/runs/{run}"
        self.table = LayerTable(tuple(LayerSpec(name, "linear", (64, 32)) for name in layers))
        self.seq = 0
        httpx.post(f"{url}/api/v1/runs", json={"run": run, **body}).raise_for_status()
        httpx.put(
            f"{self.address}/layer-tables/{self.table.hash}",
            content=self.table.body,
            headers={"Content-Type": "application/json"},
        ).raise_for_status()

    def send(
        self,
        steps: Sequence[int],
        *,
        scalars: dict[str, npt.ArrayLike] | None = None,
        dropped: int = 0,
        **metrics: npt.ArrayLike,
    ) -> None:
        """Send metrics [steps, layers] and scalars [steps], all of them broadcast."""
        shape = (len(steps), len(self.table.names))
        values = {k: np.broadcast_to(np.float32(v), shape) for k, v in metrics.items()}
        columns = {
            k: np.broadcast_to(np.float32(v), len(steps)) for k, v in (scalars or {}).items()
        }
        for start in range(0, len(steps), MOST_STEPS):
            rows = slice(start, start + MOST_STEPS)
            batch = Batch(
                writer="feed",
                seq=self.seq,
                layers=self.table.hash,
                steps=tuple(steps[rows]),
                metrics=tuple(values),
                values=np.stack([v[rows] for v in values.values()]),
                scalars=tuple(columns),
                scalar_values=np.stack([v[rows] for v in columns.values()])
                if columns
                else np.empty((0, 0), np.float32),
                dropped=dropped if start == 0 else 0,
            )
            httpx.post(
                f"{self.address}/batches",
                content=encode(batch),
                headers={"Content-Type": MEDIA_TYPE},
            ).raise_for_status()
            self.seq += 1

    def finish(self, state: str = "finished") -> None:
        httpx.post(f"{self.address}/finish", json={"state": state}).raise_for_status()
