"""Rows on their way to the host: one copy each, read when ready, never waited for."""

import numpy as np
import pytest
import torch

from snc_client.callback.readback.device_row import DeviceRow
from snc_client.callback.readback.in_flight import InFlight
from snc_client.callback.readback.latest import Latest
from snc_client.callback.readback.metrics import METRICS, device_metrics, mark_absent
from snc_client.callback.readback.pending_row import start_copy
from snc_client.callback.readback.pinned_buffers import SLOTS, Readback
from snc_client.callback.readback.scalars import Scalars
from snc_service.wire import absent

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run it where torch sees a GPU"
)


def row_of(*layers: int, certified: tuple[int, ...] = ()) -> DeviceRow:
    """Return a row whose values say metric and layer: 100 * m + layer."""
    named = {
        name: 100.0 * m + torch.tensor(layers, dtype=torch.float32)
        for m, name in enumerate(METRICS)
    }
    return DeviceRow(device=CPU, layers=layers, certified=certified, **named)


def test_groups_of_layers_and_scalars_come_back_in_their_places():
    in_flight = InFlight(METRICS)
    scalars = {"loss": torch.tensor([0.5]), "lr": 0.1}
    rows = [row_of(2, certified=(2,)), row_of(0, 3)]
    pending = in_flight.ship(7, np.zeros(4, np.bool_), rows, scalars)
    assert in_flight.report(7, {"accuracy": torch.tensor([0.25])})
    assert pending.ready()
    row = pending.take(num_layers=4)
    for m, name in enumerate(METRICS):
        assert row.metric(name)[[0, 2, 3]].tolist() == [100 * m, 100 * m + 2, 100 * m + 3]
        assert absent(row.metric(name))[1], "layer 1 was in no row"
    assert row.step == 7
    assert row.certified.tolist() == [False, False, True, False]
    assert row.scalars == {"lr": 0.1, "loss": 0.5, "accuracy": 0.25}


def test_further_metrics_are_found_by_name_whatever_order_they_were_measured_in():
    metrics = device_metrics(["update_norm", "frobenius"], guarded=True)
    assert metrics == (*METRICS, "frobenius", "update_norm", "guard")
    more = {"guard": torch.tensor([3.0]), "update_norm": torch.tensor([2.0])}
    row = row_of(0).with_metrics(more).with_metrics({"frobenius": torch.tensor([-1.0])})
    found = InFlight(metrics).ship(1, np.zeros(1, np.bool_), [row], {}).take(1)
    assert found.metric("guard")[0] == 3.0
    assert found.metric("update_norm")[0] == 2.0
    assert absent(found.metric("frobenius"))[0], "-1 says that a norm was not measured"


def test_what_travels_is_a_copy():
    loss = torch.tensor([0.5])
    flight = start_copy(Readback(CPU), [], METRICS, {"loss": loss}).flight
    loss.zero_()
    assert flight.take().tolist() == [0.5]


def test_none_is_absent_and_not_a_number_is_a_measurement():
    values = np.full((len(METRICS), 2), np.nan, np.float32)
    values[METRICS.index("threshold")] = [np.inf, 2.0]
    mark_absent(METRICS, values)
    latest = Latest(["a", "b"], 3, values)
    assert latest["a"]["threshold"] is None
    assert latest["b"]["threshold"] == 2.0
    assert latest["a"]["sigma_upper"] is None
    assert latest["a"]["scale"] is None
    assert np.isnan(latest["a"]["sigma"])
    assert list(latest) == ["a", "b"]
    assert "c" not in latest


def test_a_tensor_of_any_kind_with_one_element_is_a_scalar():
    numbers, tensors = Scalars().sort(
        {"a": 1, "b": True, "c": np.float64(0.5), "d": torch.ones(1, 1, dtype=torch.float64)}
    )
    assert numbers == {"a": 1.0, "b": 1.0, "c": 0.5}
    assert tensors[CPU]["d"].dtype == torch.float32


@pytest.mark.cuda
@needs_cuda
def test_a_busy_device_is_not_waited_for_and_its_buffers_return():
    device = torch.device("cuda")
    readback = Readback(device)
    values = torch.arange(4.0, device=device)
    torch.cuda._sleep(10**9)
    flights = []
    while not readback.full():
        readback.start()
        flights.append(readback.send(values))
    assert len(flights) == SLOTS
    assert not flights[0].ready()
    torch.cuda.synchronize()
    assert all(flight.ready() for flight in flights)
    assert [flight.take().tolist() for flight in flights] == [[0.0, 1.0, 2.0, 3.0]] * SLOTS
    assert flights[0].device_seconds() >= 0
    assert not readback.full()
