"""A sender that is quick, what it is given, and a ledger that answers it."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from ledger import Ledger, Reply, Seen, serving

from snc_client.sender import Pace, Sender
from snc_service.wire import LayerTable

TABLE = LayerTable.of_names(["fc1.weight", "fc2.weight", "fc3.weight"])
METRICS = ("sigma", "threshold")
PER_ROW = len(METRICS) * len(TABLE.layers)
QUICK = Pace(
    linger_seconds=0.01,
    first_backoff_seconds=0.01,
    max_backoff_seconds=0.03,
    slow_retry_seconds=0.03,
)


@pytest.fixture
def ledger():
    with serving(Ledger()) as ledger:
        yield ledger


@pytest.fixture
def dead_port():
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        yield held.getsockname()[1]


def sender(url: str, **keywords) -> Sender:
    return Sender(url, **{"table": TABLE, "metrics": METRICS, "pace": QUICK, **keywords})


def values(step: int) -> np.ndarray:
    return (
        np.random.default_rng(step)
        .standard_normal((len(METRICS), len(TABLE.layers)))
        .astype(np.float32)
    )


def put(out: Sender, *steps: int, **scalars: float) -> None:
    for step in steps:
        out.put(step, values(step), scalars, 1_763_800_000.0 + step)


def batches_posted(ledger: Ledger) -> list[Seen]:
    return ledger.posted("/batches")


def once(reply: Reply, ending: str = "/batches"):
    """Return a fault that strikes the first request whose path ends so."""
    left = [reply]
    return lambda seen: left.pop() if seen.path.endswith(ending) and left else None
