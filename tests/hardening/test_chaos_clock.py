"""A clock that leaps a day ahead and back while real jobs report: nobody is taken for gone."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from api_cases import Clock, serving_app, settings_in
from listeners import LOOPBACK, listening, says
from service_process import Service, until
from test_alerts import Watched

from snc_client.sender import Pace, Sender
from snc_service.wire import LayerTable

DAY = 86_400
TABLE = LayerTable.of_names(["a", "b"])
HERE = Path(__file__).resolve().parents[1] / "support"
SILENT_SECONDS = 2


class Reporting(threading.Thread):
    """A job that reports a step every 20 ms; every tenth breaches its threshold."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.out = Sender(
            url, table=TABLE, metrics=("sigma", "threshold"), run="r", pace=Pace(linger_seconds=0.1)
        )
        self.stop = threading.Event()
        self.steps = 0

    def run(self) -> None:
        while not self.stop.wait(0.02):
            sigma = 3.0 if self.steps % 10 == 9 else 1.0
            values = np.array([[sigma, 1.0], [2.0, 2.0]], np.float32)
            self.out.put(self.steps, values, {"loss": 1.0}, time.time())
            self.steps += 1
        self.out.close(30)


def passed(job: Reporting, seconds: float) -> None:
    """Let the job go on until so much more of it is acknowledged."""
    wanted = job.out.sent_values + seconds / 0.02 * 5
    until(lambda: job.out.sent_values >= wanted)


@pytest.mark.timeout(180)
def test_a_day_ahead_and_back_silences_nobody_and_loses_nothing(tmp_path):
    leap = tmp_path / "leap"
    leap.write_text("0")
    command = (sys.executable, str(HERE / "leaping_service.py"), str(leap))
    service = Service(
        f"sqlite:///{tmp_path}/snc.db",
        tmp_path / "log",
        command=command,
        SNC_SILENT_SECONDS=str(SILENT_SECONDS),
    )
    try:
        job = Reporting(service.url)
        job.start()
        passed(job, 0.5)
        with httpx.Client(base_url=f"{service.url}/api/v1", timeout=30) as api:
            seen = []
            for leapt in (DAY, 0, -DAY, 0):
                leap.write_text(str(leapt))
                passed(job, 1.5 * SILENT_SECONDS)
                run = api.get("/runs/r").json()
                seen.append(run["updated_at"][:10])
                assert run["state"] == "active"
            job.stop.set()
            job.join()
            assert len(set(seen)) >= 3, "the service's clock did not leap"
            events = api.get("/runs/r/events", params={"limit": 500}).json()["items"]
            assert "run_silent" not in {event["rule"] for event in events}
            path = "/runs/r/layers/a/history"
            found = api.get(path, params={"metric": "sigma", "points": 5_000}).json()
            assert found["steps"] == list(range(job.steps))
            assert api.get("/runs/r").json()["breaches"] == job.steps // 10
            assert job.out.dropped_values == 0
    finally:
        service.stop()


@pytest.mark.parametrize("leap", [-DAY, 2 * DAY])
def test_an_alert_that_waits_for_its_next_try_outlives_a_clock_that_leaps(tmp_path, leap):
    clock = Clock()
    settings = settings_in(tmp_path, alert_networks=LOOPBACK)
    with listening(says(500)) as there, serving_app(settings, clock=clock) as api:
        watched = Watched(api, clock)
        watched.route(pager=there.url)
        watched.train(1, sigma=3.0)
        there.wait_for(1)
        until(lambda: watched.health()["failures"] == 1)
        clock.now += leap
        until(lambda: watched.health()["failures"] == 2)
        there.answer = says(200)
        clock.now += 2
        there.wait_for(3)
        until(lambda: watched.health()["waiting"] == 0)
