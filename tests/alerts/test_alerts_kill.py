"""kill -9 between an event and its delivery: after a restart it is delivered."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from listeners import hangs, listening, says, until

SECRET = "a secret of sixteen characters"


class Service:
    """A real ``snc serve`` process on one store, that can be killed and started again."""

    def __init__(self, folder, **environment):
        self.store = folder / "snc.db"
        self.environment = environment
        self.seq = 0
        self.start()

    def start(self):
        log = self.store.with_suffix(".log").open("ab")
        command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0"]
        self.process = subprocess.Popen(
            [*command, f"--store=sqlite:///{self.store}"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={
                **os.environ,
                "SNC_ALERT_NETWORKS": "127.0.0.0/8",
                "OMP_NUM_THREADS": "1",
                **self.environment,
            },
        )
        log.close()
        line = self.process.stdout.readline()
        assert line, self.store.with_suffix(".log").read_text()
        self.url = re.search(r"http://\S+/", line)[0].rstrip("/")
        # It listens before it prints: the first request waits until it serves.
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=30)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        self.close()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.http.close()

    def receiver(self):
        return self.http.get("/alerting/receivers").json()["items"][0]

    def route(self, url):
        document = {
            "receivers": {"pager": {"type": "webhook", "url": url, "secret": SECRET}},
            "routes": [{"receivers": ["pager"]}],
        }
        self.http.put("/alerting", json=document).raise_for_status()

    def breach(self, run):
        """Return once a batch with a breach is acknowledged."""
        self.http.post("/runs", json={"run": run}).raise_for_status()
        batch = {"writer": "w", "seq": 0, "steps": [1], "layers": ["fc1.weight"],
                 "metrics": {"sigma": [[3.0]], "threshold": [[2.0]]}}  # fmt: skip
        self.http.post(f"/runs/{run}/batches", json=batch).raise_for_status()


@pytest.fixture
def service(tmp_path):
    started = Service(tmp_path)
    yield started
    started.close()


def test_what_was_acknowledged_before_a_kill_is_told_after_the_restart(service):
    with listening() as there:
        service.route(there.url)
        for number in range(5):
            service.breach(f"run-{number}")
            service.kill()
            service.start()
        wanted = {f"run-{number}" for number in range(5)}
        until(lambda: {each.json()["run"] for each in there.heard} >= wanted)
    told = [each.json() for each in there.heard]
    # At least once: told again after a kill, a message says by its key that it is the same.
    keys = {(each["run"], each["status"], each["revision"]) for each in told}
    assert {run for run, *_ in keys} == wanted
    assert {each["rule"] for each in told} == {"breach"}


@pytest.mark.timeout(180)
def test_what_was_being_told_when_the_service_was_killed_is_told_again(service):
    with listening(hangs) as there:
        service.route(there.url)
        service.breach("r")
        there.wait_for(1)
        service.kill()
        there.released.set()
        there.answer = says(200)
        service.start()
        first, again = there.wait_for(2, seconds=90)
        assert first.headers["X-Snc-Delivery"] == again.headers["X-Snc-Delivery"]
        until(lambda: service.receiver()["told_at"])
        assert service.receiver()["waiting"] == 0


def test_a_receiver_that_is_down_while_the_service_restarts_is_told_in_the_end(service):
    with listening() as there:
        url, port = there.url, there.port
    service.route(url)
    service.breach("r")
    until(lambda: service.receiver()["failures"])
    service.kill()
    service.start()
    with listening(port=port) as there:
        assert there.wait_for(1, seconds=60)[0].json()["run"] == "r"
