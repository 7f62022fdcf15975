"""`snc replay`: a real process over a spool that a job left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ledger import Reply

from snc_client.sender import Sender
from snc_service.wire import LayerTable


@pytest.fixture
def left(ledger, tmp_path) -> Path:
    """Return a spool with ten rows of two values, from a job without a service."""
    ledger.before = lambda _: Reply(503, b"{}")
    table = LayerTable.of_names(["a", "b"])
    out = Sender(ledger.url, table=table, metrics=("sigma",), run="r", spool=tmp_path)
    for step in range(10):
        out.put(step, np.full((1, 2), step, np.float32), {}, 1.0)
    out.close(0.1)
    out._threads.join()  # a request under way would be seen after the next line
    ledger.seen.clear()
    ledger.before = lambda _: None
    return tmp_path


def snc_replay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "snc_client.replay", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )


def test_what_a_job_left_arrives_and_the_folder_is_empty_then(ledger, left):
    done = snc_replay(str(left), "--url", ledger.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "run r: 20 values sent, 0 still in the spool, 0 lost\n"
    assert len(ledger.rows("r")) == 10
    assert list(left.iterdir()) == []
    again = snc_replay(str(left), "--url", ledger.url)
    assert again.stdout == "nothing to send: no ended job left rows here\n"
    assert again.returncode == 0


def test_url_and_token_come_from_the_environment_and_json_is_printed(ledger, left):
    done = snc_replay(str(left), "--json", SNC_URL=ledger.url, SNC_TOKEN="t0ken")
    (one,) = json.loads(done.stdout)
    assert (one["run"], one["sent_values"], one["kept_values"]) == ("r", 20, 0)
    assert {seen.headers["authorization"] for seen in ledger.seen} == {"Bearer t0ken"}


def test_without_a_service_everything_stays_and_the_status_says_so(ledger, left):
    ledger.before = lambda _: Reply(503, b"{}")
    done = snc_replay(str(left), "--url", ledger.url, "--timeout", "0.2")
    assert done.returncode == 1
    assert "run r: 0 values sent, 20 still in the spool, 0 lost (the service at" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/at/all"], "DIR must be the folder of a spool"),
        ([".", "--url", "nonsense"], "url must be http"),
        ([".", "--timeout", "soon"], "invalid float value"),
        ([], "required: DIR"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(arguments, said):
    done = snc_replay(*arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
