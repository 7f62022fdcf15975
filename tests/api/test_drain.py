"""SIGTERM under load: every answer is whole, what was acknowledged is there, and it ends soon."""

from __future__ import annotations

import signal
import socket
import threading
import time

import httpx
import pytest
from api_cases import RUN, batch_of, table_of
from test_app import process

from snc_service.wire import MEDIA_TYPE, encode

TABLE = table_of("fc1.weight", "fc2.weight")
SENDERS, STREAMS = 8, 20
MOST_SECONDS = 10
# Between two requests a server may close a connection that is kept alive: nothing was answered yet.
# What was sent meanwhile was not read then, which the kernel tells by a reset or a broken pipe.
BETWEEN_REQUESTS = (
    "Server disconnected without sending a response.",
    "[Errno 104] Connection reset by peer",
    "[Errno 32] Broken pipe",
    "",
)


class Sender(threading.Thread):
    """A client that sends batches one after the other until it is told to go away."""

    def __init__(self, url: str, writer: str) -> None:
        super().__init__()
        self.url, self.writer = url, writer
        self.acknowledged = 0
        self.ended = ""
        self.well_under_way = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while True:
                seq = self.acknowledged
                content = encode(batch_of(TABLE, seq, writer=self.writer, steps=(seq,),
                                          sigma=[[seq, seq + 1]]))  # fmt: skip
                headers = {"Content-Type": MEDIA_TYPE}
                try:
                    told = client.post(f"{RUN}/batches", content=content, headers=headers)
                except httpx.ConnectError:
                    self.ended = "refused"
                    return
                except httpx.HTTPError as error:
                    self.ended = str(error)
                    return
                if told.status_code != 200:
                    self.ended = told.json()["type"]
                    return
                self.acknowledged += 1
                if self.acknowledged == 20:
                    self.well_under_way.set()


class Watcher(threading.Thread):
    """A page that follows the run; says whether its stream came to a proper end."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.open = threading.Event()
        self.ended = ""

    def run(self) -> None:
        try:
            with httpx.stream("GET", f"{self.url}{RUN}/stream", timeout=30) as told:
                for _ in told.iter_lines():
                    self.open.set()
            self.ended = "whole"
        except httpx.HTTPError as error:
            self.ended = str(error)


@pytest.mark.timeout(180)
def test_a_stop_under_load_loses_nothing_cuts_no_answer_and_takes_less_than_ten_seconds(tmp_path):
    with process(tmp_path) as (served, url):
        httpx.post(f"{url}/api/v1/runs", json={"run": "r"}).raise_for_status()
        table = f"{url}{RUN}/layer-tables/{TABLE.hash}"
        json = {"Content-Type": "application/json"}
        httpx.put(table, content=TABLE.body, headers=json).raise_for_status()
        senders = [Sender(url, f"w{i}") for i in range(SENDERS)]
        watchers = [Watcher(url) for _ in range(STREAMS)]
        for thread in (*senders, *watchers):
            thread.start()
        for watcher in watchers:
            assert watcher.open.wait(30)
        for sender in senders:
            assert sender.well_under_way.wait(60)
        with Dripping(url):  # it would go on for the whole deadline of a body
            asked = time.monotonic()
            served.send_signal(signal.SIGTERM)
            served.wait(30)
            seconds = time.monotonic() - asked
        for thread in (*senders, *watchers):
            thread.join(30)
    assert seconds < MOST_SECONDS
    assert [watcher.ended for watcher in watchers] == ["whole"] * STREAMS
    for sender in senders:
        assert sender.ended in ("refused", "/problems/draining", *BETWEEN_REQUESTS), sender.ended
    with process(tmp_path) as (_, url):
        for sender in senders:
            # The one under way may be stored without its acknowledgement, and no other.
            again = encode(batch_of(TABLE, sender.acknowledged + 5, writer=sender.writer,
                                    steps=(10**6,), sigma=[[1, 1]]))  # fmt: skip
            told = httpx.post(
                f"{url}{RUN}/batches", content=again, headers={"Content-Type": MEDIA_TYPE}
            )
            assert told.status_code == 409
            assert told.json()["expected"] - sender.acknowledged in (0, 1)


class Dripping:
    """A client that sends a body byte by byte as long as it may."""

    def __init__(self, url: str) -> None:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._peer = socket.create_connection(address, timeout=30)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def __enter__(self) -> None:
        head = f"POST {RUN}/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
        self._peer.sendall(f"{head}Content-Type: {MEDIA_TYPE}\r\n\r\nS".encode())
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._peer.close()

    def _drip(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self._peer.sendall(b"N")
            except OSError:
                return
