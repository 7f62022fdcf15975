"""A TCP proxy between client and service that does what networks do: late, cut off, twice."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Literal, TypeAlias, get_args

Fault: TypeAlias = Literal["late", "cut request", "cut answer", "twice", "again later"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
LATE_SECONDS = 0.2  # at most
SECONDS = 30.0  # that one side may take


class UnkindProxy:
    """Forward whole HTTP requests to ``target``; a share ``rate`` of them meets a fault.

    "late": some time before and after the service has it. "cut request", "cut answer": the
    connection ends somewhere within. "twice": the service gets it on two connections at once, the
    client one of the answers. "again later": it arrives once more behind a later one.
    """

    def __init__(self, target: tuple[str, int], seed: int, faults: tuple[Fault, ...]) -> None:
        self.target = target
        self.rate = 0.0
        self.met: Counter[str] = Counter()
        self._faults = faults
        self._random = random.Random(seed)
        self._stale: bytes | None = None
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections; those that are open end with their next request."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Forward what comes over one connection until either side has had enough."""
        client.settimeout(SECONDS)
        with client, suppress(OSError):
            while (request := _message(client)) is not None and self._forward(client, request):
                pass

    def _forward(self, client: socket.socket, request: bytes) -> bool:
        fault, share, pause = self._drawn()
        if fault == "late":
            time.sleep(pause)
        if fault == "cut request":
            with closing(self._sent(request[: int(share * len(request))])):
                return False
        self._repeat_stale(request if fault == "again later" else None)
        if fault == "twice":
            with closing(self._sent(request)) as other:
                answer = self._asked(request)
                _message(other)
        else:
            answer = self._asked(request)
        if answer is None:
            return False
        if fault == "late":
            time.sleep(pause)
        if fault == "cut answer":
            client.sendall(answer[: int(share * len(answer))])
            return False
        client.sendall(answer)
        return True

    def _drawn(self) -> tuple[Fault | None, float, float]:
        """Return what shall happen to the next request, and two numbers that say how."""
        with self._lock:
            fault = None
            if self._random.random() < self.rate:
                fault = self._random.choice(self._faults)
                self.met[fault] += 1
            return fault, self._random.random(), self._random.uniform(0, LATE_SECONDS)

    def _repeat_stale(self, request: bytes | None) -> None:
        """Send what was kept from earlier, and keep ``request``."""
        with self._lock:
            stale, self._stale = self._stale, request
        if stale is not None:
            self._asked(stale)

    def _sent(self, request: bytes) -> socket.socket:
        service = socket.create_connection(self.target, SECONDS)
        service.sendall(request)
        return service

    def _asked(self, request: bytes) -> bytes | None:
        with closing(self._sent(request)) as service:
            return _message(service)


def _message(sender: socket.socket) -> bytes | None:
    """Return one whole request or answer; None if the sender ends before."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := sender.recv(65_536)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = [line.lower() for line in head.split(b"\r\n")]
    length = next((int(f[15:]) for f in fields if f.startswith(b"content-length:")), 0)
    while len(body) < length:
        if not (more := sender.recv(65_536)):
            return None
        body += more
    return head + b"\r\n\r\n" + body


@contextmanager
def unkind(
    url: str, seed: int = 0, rate: float = 0.0, faults: tuple[Fault, ...] = FAULTS
) -> Iterator[UnkindProxy]:
    """Stand before the service at ``url`` while the block lasts."""
    host, port = url.removeprefix("http://").split(":")
    proxy = UnkindProxy((host, int(port)), seed, faults)
    proxy.rate = rate
    try:
        yield proxy
    finally:
        proxy.close()
