"""Rows on their way to the host: one copy each, read when ready, never waited for."""

import numpy as np
import pytest
import torch

from snc_client.callback.readback.latest import METRICS, Latest, mark_absent
from snc_client.callback.readback.pending_row import Row, Scalars, parcel
from snc_client.callback.readback.pinned_buffers import SLOTS, Readback
from snc_service.wire import absent

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run it where torch sees a GPU"
)


def values_of(*layers: int) -> torch.Tensor:
    """Return [M, l] whose entry says metric and layer: 100 * m + layer."""
    metrics = 100.0 * torch.arange(len(METRICS))
    return metrics[:, None] + torch.tensor(layers, dtype=torch.float32)


def test_groups_of_layers_and_scalars_come_back_in_their_places():
    readback = Readback(CPU)
    scalars = {"loss": torch.tensor([0.5])}
    first = parcel(readback, [values_of(2), values_of(0, 3)], [2, 0, 3], scalars)
    second = parcel(readback, [], [], {"accuracy": torch.tensor([0.25])})
    row = Row(7, np.zeros(4, np.bool_), {"lr": 0.1}, [first, second], np.zeros(4, np.bool_))
    assert row.ready()
    values = row.take(num_layers=4)
    expected = values_of(0, 1, 2, 3).numpy()
    np.testing.assert_array_equal(values[:, [0, 2, 3]], expected[:, [0, 2, 3]])
    assert absent(values[:, 1]).all(), "layer 1 was in no parcel"
    assert row.scalars == {"lr": 0.1, "loss": 0.5, "accuracy": 0.25}


def test_what_travels_is_a_copy():
    loss = torch.tensor([0.5])
    flight = parcel(Readback(CPU), [], [], {"loss": loss}).flight
    loss.zero_()
    assert flight.take().tolist() == [0.5]


def test_none_is_absent_and_not_a_number_is_a_measurement():
    values = np.full((len(METRICS), 2), np.nan, np.float32)
    values[METRICS.index("threshold")] = [np.inf, 2.0]
    mark_absent(values)
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
