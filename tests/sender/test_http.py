"""HttpConnection against peers that do not come to an end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from snc_client.sender import http
from snc_client.sender.http import Answer, HttpConnection

Drip = Callable[[socket.socket], Iterator[bytes]]


def header_lines(_: socket.socket) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-More: a\r\n"


def informational_answers(_: socket.socket) -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\n\r\n"


def body(_: socket.socket) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    while True:
        yield b" "


@contextmanager
def served(drip: Drip, good: bytes) -> Iterator[tuple[str, list[int]]]:
    """Yield a URL whose first connection drips until it is closed, and whose others answer."""
    connections: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            connections.append(1)
            threading.Thread(target=answer, args=(peer, len(connections)), daemon=True).start()

    def answer(peer: socket.socket, number: int) -> None:
        with peer:
            try:
                peer.recv(65536)
                for piece in drip(peer) if number == 1 else [good]:
                    peer.sendall(piece)
                    time.sleep(0.02)  # how fast the peer drips
            except OSError:
                pass

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
    listener.close()


@pytest.mark.parametrize("drip", [header_lines, informational_answers, body])
def test_an_answer_without_an_end_is_given_up_and_the_next_request_is_answered(drip, monkeypatch):
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.2)
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n" + b'{"run":1}'
    answers: list[Answer] = []

    def ask(connection: HttpConnection) -> None:
        answers.append(connection.request("POST", "/runs", b"{}", seconds=0.5))

    with served(drip, good) as (url, connections):
        connection = HttpConnection(url, None)
        asking = threading.Thread(target=ask, args=(connection,), daemon=True)
        asking.start()
        asking.join(20)
        assert not asking.is_alive(), "it waits for the peer for ever"
        assert answers[0].status == 0
        assert connection.request("POST", "/runs", b"{}", seconds=5).body == {"run": 1}
        assert len(connections) == 2
        connection.close()
