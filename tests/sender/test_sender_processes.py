"""The sender in processes that fork, exit and are killed, and before a real service."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from ledger import Ledger
from sending import (
    PER_ROW,
    put,
    sender,
    values,
)

from snc_client.demo.service import free_port
from snc_service.wire import Policy, PolicyEntry


def program(ledger: Ledger, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter, with a sender ``out`` to the ledger."""
    head = f"""
        import os, sys, time
        import numpy as np
        from snc_client.sender import Pace, Sender
        from snc_service.wire import LayerTable
        assert "httpx" not in sys.modules, "the import belongs to the thread"
        out = Sender({ledger.url!r}, run="r", table=LayerTable.of_names(["a"]),
                     metrics=("sigma",), queue_bytes=4_000)
        def put(step):
            out.put(step, np.full((1, 1), step, np.float32), {{}}, 1.0)
    """
    text = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, timeout=100
    )


class TestProcesses:
    def test_the_exit_of_the_interpreter_flushes_and_finishes(self, ledger):
        done = program(ledger, "for step in range(100): put(step)")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(ledger.rows("r")) == 100
        assert ledger.ends == {"r": "finished"}

    def test_an_exception_that_ends_the_job_marks_the_run_failed(self, ledger):
        done = program(ledger, "put(0); raise RuntimeError('the job broke')")
        assert done.returncode == 1
        assert "the job broke" in done.stderr
        assert ledger.ends == {"r": "failed"}
        assert len(ledger.rows("r")) == 1

    def test_a_sender_that_is_dropped_still_delivers(self, ledger):
        out = sender(ledger.url)
        put(out, 0, 1)
        run = out.run
        del out
        gc.collect()
        ledger.until(lambda: run in ledger.ends)
        assert len(ledger.rows(run)) == 2

    def test_a_forked_child_sends_nothing_and_exits_cleanly(self, ledger):
        done = program(
            ledger,
            """
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside a thread: the point
            put(0)
            for leave in (os._exit, sys.exit):
                child = os.fork()
                if child == 0:
                    for step in range(10, 2_000): put(step)
                    assert out.dropped_values == 0, "nothing was kept, so nothing fell out"
                    assert out.take_policy() is None
                    out.close()
                    leave(0)
                assert os.waitpid(child, 0)[1] == 0
            put(1)
            """,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert list(ledger.rows("r")) == [(0, 0), (0, 1)]
        assert len(ledger.posted("/finish")) == 1

    def test_a_child_forked_during_the_import_of_httpx_can_import_it(self, ledger):
        done = program(
            ledger,
            """
            import signal, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            while "httpx" not in sys.modules: time.sleep(0.001)
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                import httpx
                httpx.Client
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            put(0)
            """,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(ledger.rows("r")) == 1

    def test_a_job_without_a_service_ends_by_itself(self, dead_port):
        nobody = Ledger()
        nobody.url = f"http://127.0.0.1:{dead_port}"
        done = program(nobody, "for step in range(100): put(step)")
        assert done.returncode == 0
        assert "0 values reached the service, 100 are lost" in done.stderr
        assert "Traceback" not in done.stderr


class TestRealService:
    @pytest.fixture
    def api(self, service_url):
        with httpx.Client(base_url=f"{service_url}/api/v1", timeout=30) as api:
            api.service_url = service_url
            yield api

    def history(self, api: httpx.Client, run: str, **query) -> dict:
        answer = api.get(
            f"/runs/{run}/layers/fc2.weight/history", params={"metric": "sigma", **query}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def test_what_was_put_is_what_rest_returns(self, api):
        out = sender(api.service_url, project="p", name="n", config={"lr": 0.1})
        put(out, *range(300), loss=0.25)
        out.close(30)
        assert (out.dropped_values, out.errors) == (0, 0), out.last_error
        found = self.history(api, out.run)
        assert found["steps"] == list(range(300))
        assert np.array_equal(
            np.array(found["mean"], np.float32),
            np.array([values(step)[0, 1] for step in range(300)]),
        )
        run = api.get(f"/runs/{out.run}").json()
        assert (run["state"], run["project"], run["name"]) == ("finished", "p", "n")
        assert run["last_step"] == 299

    def test_a_rewind_and_a_resume_each_start_an_attempt(self, api):
        first = sender(api.service_url)
        put(first, 0, 1, 2, 3, 2, 3)
        first.close(30)
        again = sender(api.service_url, run=first.run)
        put(again, 1)
        again.close(30)
        steps = [self.history(api, first.run, attempt=n)["steps"] for n in range(3)]
        assert steps == [[0, 1, 2, 3], [2, 3], [1]]
        assert first.dropped_values == again.dropped_values == 0

    def test_a_policy_changed_over_rest_comes_back_with_the_next_acknowledgement(self, api):
        out = sender(api.service_url, policy=Policy((PolicyEntry("*", 2.0),)))
        put(out, 0)
        while (taken := out.take_policy()) is None:
            time.sleep(0.01)
        assert taken == (1, Policy((PolicyEntry("*", 2.0),)))
        changed = {"entries": [{"pattern": "fc*", "threshold": "3x init", "action": "observe"}]}
        assert api.put(f"/runs/{out.run}/policy", json=changed).status_code == 200
        put(out, 1)
        while (taken := out.take_policy()) is None:
            time.sleep(0.01)
        assert taken == (2, Policy.parse(changed))
        out.close(30)

    def test_a_deleted_run_comes_back_with_what_follows(self, api):
        out = sender(api.service_url)
        put(out, 0)
        while out.sent_values < PER_ROW:
            time.sleep(0.01)
        assert api.delete(f"/runs/{out.run}").status_code == 204
        put(out, 1)
        out.close(30)
        assert self.history(api, out.run)["steps"] == [1]
        assert (out.sent_values, out.dropped_values) == (2 * PER_ROW, 0)

    def test_kill_9_of_the_service_loses_and_doubles_nothing(self, tmp_path):
        port = free_port(0)
        out = sender(f"http://127.0.0.1:{port}", run="r")
        for start in range(0, 300, 100):
            put(out, *range(start, start + 50))
            acknowledged = out.sent_values
            with served(tmp_path, port) as api:
                while out.sent_values == acknowledged:
                    time.sleep(0.01)
                for step in range(start + 50, start + 100):  # the service dies in the midst of it
                    put(out, step)
                    time.sleep(0.002)
                if start == 200:
                    out.close(60)
                    found = self.history(api, "r")
                    run = api.get("/runs/r").json()
        assert found["steps"] == list(range(300))
        expected = np.array([values(step)[0, 1] for step in range(300)])
        assert np.array_equal(np.array(found["mean"], np.float32), expected)
        assert (out.sent_values, out.dropped_values) == (300 * PER_ROW, 0)
        assert (run["state"], run["attempt"], run["dropped_values"]) == ("finished", 0, 0)


@contextlib.contextmanager
def served(folder: Path, port: int) -> Iterator[httpx.Client]:
    """Run ``snc serve`` on its store in ``folder`` until it is killed with -9."""
    command = [sys.executable, "-m", "snc_service.cli", "serve", f"--port={port}"]
    process = subprocess.Popen(
        [*command, f"--store=sqlite:///{folder / 'snc.db'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as api:
        try:
            yield api
        finally:
            process.kill()
            process.wait()
