"""Each fault of a network alone, at every second request: every value arrives once, bit for bit."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from service_process import create, post, until
from store_cases import batch, table
from unkind_proxy import FAULTS, Fault, unkind

from snc_client.demo.service import free_port, serving
from snc_client.sender import Pace, Sender
from snc_service.wire import LayerTable

TABLE = LayerTable.of_names(["a", "b", "c"])
PER_ROW = 2 * 3 + 1
ROWS = 120
PACE = Pace(linger_seconds=0.0, batch_steps=1, first_backoff_seconds=0.01, max_backoff_seconds=0.03)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("network") / "snc.db", free_port(0)) as url:
        yield url


def values(step: int) -> np.ndarray:
    """Return sigma and threshold: sigma breaches in the first layer at every third step."""
    sigma = np.random.default_rng(step).random(3, np.float32)
    sigma[0] += 2 * (step % 3 == 0)
    return np.stack([sigma, np.full(3, 1.5, np.float32)])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_behind_a_network_with_one_fault_is_stored_once(service, fault: Fault):
    with unkind(service, seed=1, rate=0.5, faults=(fault,)) as proxy:
        out = Sender(
            proxy.url, table=TABLE, metrics=("sigma", "threshold"),
            run=f"job-{fault.replace(' ', '-')}", pace=PACE,
        )  # fmt: skip
        out.put(0, values(0), {"loss": 0.0}, 1.0)
        until(lambda: out.sent_values)  # at its end a job does not wait for who never answered
        for step in range(1, ROWS):
            out.put(step, values(step), {"loss": step / 4}, 1.0)
        out.close(100)
        assert (out.sent_values, out.dropped_values) == (ROWS * PER_ROW, 0), out.last_error
        assert proxy.met[fault] >= 1
    path = f"{service}/api/v1/runs/{out.run}"
    for index, name in enumerate(TABLE.names):
        got = httpx.get(f"{path}/layers/{name}/history", params={"metric": "sigma"}).json()
        assert got["steps"] == list(range(ROWS))
        expected = [values(step)[0, index] for step in range(ROWS)]
        assert np.array_equal(np.array(got["mean"], np.float32), np.array(expected))
    run = httpx.get(path).json()
    assert run["breaches"] == ROWS // 3
    assert (run["attempt"], run["dropped_values"]) == (0, 0)


def test_batches_that_come_twice_at_once_or_late_are_acknowledged_and_counted_once(service):
    layers = table("a", "b")
    create(service, layers, "twice")
    faults: tuple[Fault, ...] = ("twice", "again later")
    with unkind(service, seed=2, rate=1.0, faults=faults) as proxy, httpx.Client() as client:
        for seq in range(60):
            one = batch(layers, seq, [seq], {"sigma": [[2.0, 1.0]], "threshold": [[1.5, 1.5]]})
            answer = post(client, proxy.url, one, "twice")
            assert answer.status_code == 200, answer.text
        assert min(proxy.met[fault] for fault in faults) > 10
    run = httpx.get(f"{service}/api/v1/runs/twice").json()
    assert run["breaches"] == 60
    events = httpx.get(f"{service}/api/v1/runs/twice/events").json()["items"]
    assert [event["rule"] for event in events].count("breach") == 1
    assert run["last_step"] == 59
