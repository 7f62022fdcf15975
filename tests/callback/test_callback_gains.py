"""Gains: norms of 1-d weights travel as rows of their own, behind the layers."""

import pytest
import torch
from torch import nn

from snc_client import SNCallback
from snc_client.callback.service.reporter import Reporter
from snc_service.wire import absent

SIGNALS = ("loss", "frobenius", "grad_norm", "gains")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def sent(monkeypatch) -> list:
    rows = []

    def put(self, step, columns, scalars, time):
        rows.append((step, columns.copy(), dict(scalars)))

    monkeypatch.setattr(Reporter, "put", put)
    return rows


def test_a_gain_is_a_row_with_its_norm_and_nothing_else(sent):
    net = model()
    with SNCallback(net, signals=SIGNALS) as callback:
        names = callback._connection._table.names
        metrics = callback._monitor.metrics
        for _ in range(3):
            with torch.no_grad():
                net[1].weight.mul_(1.5)
            callback.step(loss=1.0)
    assert names[-1] == "1.weight"
    steps = {step: columns for step, columns, _ in sent}
    for step in (1, 2, 3):
        row = steps[step][:, -1]
        assert row[list(metrics).index("frobenius")] == pytest.approx(1.5**step * 8**0.5, rel=1e-6)
        assert absent(row).sum() == len(metrics) - 1
        assert steps[step].shape[1] == len(names)
    assert all(not name.startswith("snc_gain") for _, _, told in sent for name in told)


def test_without_the_signal_nothing_is_added(sent):
    with SNCallback(model()) as callback:
        callback.step(loss=1.0)
        assert "1.weight" not in callback._connection._table.names
    assert {columns.shape[1] for _, columns, _ in sent} == {2}


def test_a_gain_that_is_measured_as_a_layer_is_no_second_row(sent):
    with SNCallback(model(), signals=SIGNALS, maps={"1.weight": "gain"}) as callback:
        names = callback._connection._table.names
        callback.step(loss=1.0)
    assert len(names) == len(set(names)) == 3
    assert {columns.shape[1] for _, columns, _ in sent} == {3}
