"""One app: its parts joined, nothing shared with another, and a stop that loses nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from api_cases import (
    RUN,
    Clock,
    assert_problem,
    batch_of,
    register,
    serving_app,
    settings_in,
    table_of,
)

from snc_service import background_tasks
from snc_service.app import create_app
from snc_service.settings import Settings, SettingsError
from snc_service.store import open_store
from snc_service.store.types import StoreUnavailable

TABLE = table_of("a")


def test_two_apps_in_one_process_share_nothing(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        serving_app(settings_in(tmp_path / "one")) as one,
        serving_app(settings_in(tmp_path / "two", metrics_series=0)) as two,
    ):
        register(one, TABLE)
        one.send(batch_of(TABLE, sigma=[[1.0]]))
        register(two, TABLE)
        assert one.get(RUN).json()["last_step"] == 0
        assert two.get(RUN).json()["last_step"] is None
        counted = 'snc_ingest_batches_total{outcome="accepted"} '
        assert f"{counted}1" in one.get("/metrics").text
        assert f"{counted}0" in two.get("/metrics").text


def test_making_an_app_opens_nothing(tmp_path):
    create_app(settings_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_importing_the_app_does_nothing(tmp_path):
    code = (
        "import os, threading; before = set(os.listdir('.')); import snc_service.app;"
        "assert threading.active_count() == 1; assert set(os.listdir('.')) == before"
    )
    environ = os.environ | {"SNC_STORE": "nonsense", "SNC_PORT": "nonsense"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True)


def test_without_settings_an_app_reads_the_environment(monkeypatch):
    monkeypatch.setenv("SNC_PORT", "eighty")
    with pytest.raises(SettingsError, match="SNC_PORT"):
        create_app()


def test_a_store_that_cannot_be_opened_ends_the_start_with_its_own_sentence(tmp_path):
    settings = Settings(store=f"sqlite:///{tmp_path / 'missing' / 'folder' / 'snc.db'}")
    with pytest.raises(StoreUnavailable), serving_app(settings):
        pass


def test_a_store_that_was_handed_in_stays_open(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'snc.db'}")
    with serving_app(Settings(), store=store) as api:
        register(api, TABLE)
    assert store.runs.get("r").run == "r"
    store.close()


def test_an_app_closes_the_store_that_it_opened(tmp_path):
    with serving_app(settings_in(tmp_path)) as api:
        store = api.service.store
        register(api, TABLE)
    with pytest.raises(StoreUnavailable):
        store.batches.put_layer_table("r", table_of("b"))


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path):
    with serving_app(settings_in(tmp_path)) as api:
        register(api, TABLE)
        for seq in range(3):
            assert api.send(batch_of(TABLE, seq, (seq,), sigma=[[seq]])).status_code == 200
    with serving_app(settings_in(tmp_path)) as api:
        assert api.get(f"{RUN}/layers/a/history").json()["mean"] == [0, 1, 2]
        assert api.send(batch_of(TABLE, 2, (2,), sigma=[[2]])).json()["duplicate"] is True


def test_a_run_that_is_not_heard_of_becomes_silent_once_and_wakes_with_its_next_batch(tmp_path):
    clock = Clock()
    with serving_app(settings_in(tmp_path, silent_seconds=1), clock=clock) as api:
        register(api, TABLE)
        time.sleep(0.3)  # three sweeps
        assert api.get(RUN).json()["state"] == "active"
        clock.now += 5
        wait_until(lambda: api.get(RUN).json()["state"] == "silent")
        time.sleep(0.3)
        rules = [each["rule"] for each in api.get(f"{RUN}/events").json()["items"]]
        assert rules == ["run_silent", "run_started"]
        api.send(batch_of(TABLE, sigma=[[1]]))
        assert api.get(RUN).json()["state"] == "active"


@pytest.mark.parametrize("setting", [{"keep_days": 2}, {"keep_bytes": 1}])
def test_runs_that_are_over_are_kept_as_long_and_as_large_as_the_settings_say(
    tmp_path, setting, monkeypatch
):
    monkeypatch.setattr(background_tasks, "KEEP_PAUSE_SECONDS", 0.05)
    clock = Clock()
    clock.now = time.time() - 86_400
    with serving_app(settings_in(tmp_path, **setting), clock=clock) as api:
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1]]))
        time.sleep(0.2)  # several looks
        assert api.get(RUN).status_code == 200
        api.post(f"{RUN}/finish", json={"state": "finished"})
        if "keep_days" in setting:
            time.sleep(0.2)
            assert api.get(RUN).status_code == 200
            clock.now += 2.5 * 86_400
        wait_until(lambda: api.get(RUN).status_code == 404)


def test_a_sweep_that_fails_is_logged_and_tried_again(tmp_path, caplog):
    clock = Clock()
    with serving_app(settings_in(tmp_path, silent_seconds=1), clock=clock) as api:
        register(api, TABLE)
        real = api.service.store.runs.mark_silent

        def fail(before, now):
            raise StoreUnavailable("locked")

        api.service.store.runs.mark_silent = fail
        clock.now += 5
        wait_until(lambda: "silent runs could not be looked for: locked" in caplog.text)
        api.service.store.runs.mark_silent = real
        wait_until(lambda: api.get(RUN).json()["state"] == "silent")


def test_history_is_folded_beside_the_requests_and_reads_the_same(tmp_path):
    clock = Clock()
    with serving_app(settings_in(tmp_path), clock=clock) as api:
        register(api, TABLE)
        steps = tuple(range(500))
        api.send(batch_of(TABLE, 0, steps, sigma=[[step] for step in steps]))
        before = api.get(f"{RUN}/layers/a/history").json()
        real, folded = api.service.store.fold, []

        def recorded(budget_s, *, now, share):
            folded.append(real(budget_s, now=now, share=share))
            return folded[-1]

        api.service.store.fold = recorded
        clock.now += 3600  # nothing more will come soon: it is due
        wait_until(lambda: any(folded))
        assert api.get(f"{RUN}/layers/a/history").json() == before


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@contextmanager
def process(tmp_path):
    """Run ``snc serve`` on a free port; yield the process and its URL."""
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0",
               f"--store=sqlite:///{tmp_path / 'snc.db'}"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            line = served.stdout.readline()
            yield served, line.split("serves ")[1].split("/ ")[0]
        finally:
            served.kill()


class Sender(threading.Thread):
    """Sends batches one after the other until the service is gone; keeps what was acknowledged."""

    def __init__(self, url, writer):
        super().__init__()
        self.url, self.writer, self.acknowledged = url, writer, []
        self.first = threading.Event()

    def run(self):
        with httpx.Client(base_url=self.url, timeout=20) as client:
            for step in range(100_000):
                body = {"writer": self.writer, "seq": step, "steps": [step],
                        "scalars": {self.writer: [step]}}  # fmt: skip
                try:
                    told = client.post(f"{RUN}/batches", json=body)
                except httpx.HTTPError:
                    return
                if told.status_code != 200:
                    return
                self.acknowledged.append(step)
                self.first.set()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_process_what_was_acknowledged_is_there_once(tmp_path, how):
    with process(tmp_path) as (served, url):
        httpx.post(f"{url}/api/v1/runs", json={"run": "r"}).raise_for_status()
        senders = [Sender(url, f"w{i}") for i in range(4)]
        for sender in senders:
            sender.start()
        for sender in senders:
            assert sender.first.wait(30)
        time.sleep(0.5)
        served.send_signal(how)
        served.wait(30)
        for sender in senders:
            sender.join(30)
    with process(tmp_path) as (_, url):
        for sender in senders:
            told = httpx.get(
                f"{url}{RUN}/scalars/{sender.writer}/history", params={"points": 10_000}
            ).json()
            stored = told["steps"]
            assert told["mean"] == stored
            assert stored[: len(sender.acknowledged)] == sender.acknowledged
            # The one under way when the process ended may be stored without its acknowledgement.
            assert len(stored) - len(sender.acknowledged) in (0, 1)


def test_open_streams_do_not_hold_up_a_stop(tmp_path):
    with process(tmp_path) as (served, url):
        httpx.post(f"{url}/api/v1/runs", json={"run": "r"}).raise_for_status()
        with httpx.stream("GET", f"{url}{RUN}/stream", timeout=30) as told:
            lines = told.iter_lines()
            assert next(lines) == "event: update"
            served.send_signal(signal.SIGTERM)
            rest = list(lines)  # ends, instead of breaking off
        assert any(line.startswith("data: ") for line in rest)
        served.wait(30)


def test_the_page_is_served_and_loads_from_here(tmp_path):
    with serving_app(settings_in(tmp_path)) as api:
        page = api.get("/")
        assert page.status_code == 200
        assert page.headers["Content-Type"].startswith("text/html")


def test_the_schema_is_made_once(tmp_path):
    with serving_app(settings_in(tmp_path)) as api:
        assert api.app.openapi() is api.app.openapi()
        assert api.get("/openapi.json").json() == json.loads(json.dumps(api.app.openapi()))


def test_exact_values_of_old_runs_are_kept_as_long_as_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setattr(background_tasks, "KEEP_PAUSE_SECONDS", 0.05)
    clock = Clock()
    with serving_app(settings_in(tmp_path, thin_days=2), clock=clock) as api:
        register(api, TABLE)
        steps = tuple(range(200))
        told = api.send(batch_of(TABLE, 0, steps, sigma=[[step] for step in steps]))
        assert told.status_code == 200, told.text
        api.post(f"{RUN}/finish", json={"state": "finished"})
        api.service.store.fold(60, now=clock.now + 3_600)
        time.sleep(0.2)  # several looks
        history = f"{RUN}/layers/{TABLE.layers[0].name}/history"
        assert api.get(history).json()["bucket_steps"] == 1
        clock.now += 2.5 * 86_400
        wait_until(lambda: api.get(history).json()["bucket_steps"] == 32)
        assert api.get(history).json()["max"] == [31, 63, 95, 127, 159, 191, 199]
        for path in ("worst", "export"):
            problem = assert_problem(api.get(f"{RUN}/{path}"), 410, "history-thinned", "from_step")
            assert problem["below"] == 1_024
            assert api.get(f"{RUN}/{path}?from_step=1024").status_code == 200
