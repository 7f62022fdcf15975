"""``snc export``, ``worst`` and ``compare`` in real processes against a real service."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from test_cli import environment, failed, post, serving, snc


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("cli") / "snc.db") as url:
        post(url, "alpha", steps=range(40), layers=["fc1.weight", "=cmd()"])
        post(url, "beta", steps=range(10), layers=["fc1.weight", "other"])
        post(url, "gamma", steps=range(2), layers=["head", "other"])
        yield url


def test_a_run_is_written_to_a_file_in_the_form_its_name_says(url, tmp_path):
    done = snc("export", "alpha", "-o", str(tmp_path / "a.parquet"), "--json", "--url", url)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["format"] == "parquet"
    assert (tmp_path / "a.parquet").stat().st_size == said["bytes"]
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 40 * 2 * 2
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_csv_is_the_default_and_can_be_piped(url):
    done = snc("export", "alpha", "-o", "-", "--metric", "sigma", "--layer", "=cmd()",
               "--from-step", "5", "--to-step", "6", "--url", url)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader(done.stdout.splitlines()))
    assert rows[1:] == [["alpha", "0", "sigma", "'=cmd()", str(step), "0.5"] for step in (5, 6)]


def test_a_refused_export_is_one_sentence_and_leaves_no_file(url, tmp_path):
    target = str(tmp_path / "x.csv")
    assert "nobody" in failed(snc("export", "nobody", "-o", target, "--url", url))
    assert "zzz" in failed(snc("export", "alpha", "--layer", "zzz", "-o", target, "--url", url))
    assert "x.csv" in failed(snc("export", "alpha", "-o", f"{target}/x.csv", "--url", url))
    assert os.listdir(tmp_path) == []


@contextmanager
def half_an_answer(target: Path) -> Iterator[tuple[subprocess.Popen, socket.socket]]:
    """Export from a service that says a little and then nothing; yield once that has arrived."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "snc_service.cli", "export", "alpha", "--url", url]
        with subprocess.Popen(
            [*command, "-o", str(target)], env=environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            connection, _ = server.accept()
            connection.recv(65_536)
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"4\r\nrun,\r\n")
            deadline = time.monotonic() + 30
            while os.listdir(target.parent) != [f"{target.name}.part"]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with connection:
                yield process, connection


def test_an_export_that_is_interrupted_leaves_no_file(tmp_path):
    with half_an_answer(tmp_path / "x.csv") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert os.listdir(tmp_path) == []


def test_an_answer_that_breaks_off_is_a_failure_and_leaves_no_file(tmp_path):
    with half_an_answer(tmp_path / "x.csv") as (process, connection):
        connection.close()
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "broke off" in said
    assert os.listdir(tmp_path) == []


def test_the_worst_layers_are_listed(url):
    done = snc("worst", "alpha", "--json", "--url", url)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    assert [item["layer"] for item in items] == ["fc1.weight", "=cmd()"]
    assert items[0]["step"] == 39
    table = snc("worst", "alpha", "--metric", "sigma", "--limit", "1", "--url", url)
    assert "fc1.weight" in table.stdout
    assert "=cmd()" not in table.stdout


def test_one_layer_is_compared_over_runs(url):
    done = snc("compare", "alpha", "beta", "gamma", "--layer", "fc1.weight", "--url", url)
    assert done.returncode == 0, done.stderr
    assert "alpha" in done.stdout
    assert "Without such a layer: gamma" in done.stdout
    done = snc("compare", "alpha", "beta", "--layer", "fc1.weight", "--json", "--url", url)
    told = json.loads(done.stdout)
    asked = {"run": ["alpha", "beta"], "layer": "fc1.weight", "points": 60}
    assert told == httpx.get(f"{url}/api/v1/compare", params=asked).json()
