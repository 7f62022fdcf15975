"""Receivers of alerts as they are in the world: real servers that behave, or do not."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

LOOPBACK = ("127.0.0.0/8", "::1")
Handler = BaseHTTPRequestHandler


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Listener:
    """An HTTP server of one test: what it heard, and how it answers (``answer`` may be changed)."""

    port: int
    answer: Callable[[Handler], None]
    heard: list[Request] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    released: threading.Event = field(default_factory=threading.Event)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hooks/secret-path"

    def wait_for(self, count: int, seconds: float = 30) -> list[Request]:
        """Return what was heard once there are ``count`` requests."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.heard) >= count, seconds), self.heard
            return list(self.heard)


def says(status: int, **headers: str) -> Callable[[Handler], None]:
    """Answer every request with a status."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    return answer


WELL = says(200)


def hangs(handler: Handler) -> None:
    """Take the request and say nothing until the test is over."""
    handler.server.listener.released.wait(60)
    handler.close_connection = True


def drips(handler: Handler) -> None:
    """Send one byte of an endless header every few milliseconds."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.listener.released.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def floods(handler: Handler) -> None:
    """Answer with a body without end."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.listener.released.is_set():
        handler.wfile.write(b"x" * 65_536)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        listener = self.server.listener
        with listener.changed:
            listener.heard.append(Request(self.path, dict(self.headers), body))
            listener.changed.notify_all()
        try:
            listener.answer(self)
        except (OSError, ssl.SSLError):  # the other side has had enough
            self.close_connection = True

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        pass  # a client that hangs up is what some tests are about


@contextmanager
def listening(
    answer: Callable[[Handler], None] = WELL,
    *,
    context: ssl.SSLContext | None = None,
    port: int = 0,
) -> Iterator[Listener]:
    """Run a server on a free port while the block lasts."""
    server = _Server(("127.0.0.1", port), _Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    listener = Listener(server.server_address[1], answer, scheme="https" if context else "http")
    server.listener = listener
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        listener.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def nobody() -> Iterator[int]:
    """Yield a port that refuses connections: bound, but not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def certificate(folder: Path, name: str = "localhost") -> tuple[Path, ssl.SSLContext]:
    """Return a self-signed certificate for ``name``, and the context of a server that has it."""
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs openssl: apt-get install openssl")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
               f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@dataclass
class MailServer:
    """A small SMTP server: what it was given, and how it misbehaves."""

    port: int
    context: ssl.SSLContext | None
    refuses: dict[str, str] = field(default_factory=dict)  # verb -> the answer instead of 250
    mails: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    silent: bool = False
    encrypted_at_once: bool = False
    released: threading.Event = field(default_factory=threading.Event)


class _MailHandler(socketserver.StreamRequestHandler):
    encrypted = False

    def handle(self) -> None:
        mail: MailServer = self.server.mail
        try:
            if mail.silent:
                mail.released.wait(60)
                return
            if mail.encrypted_at_once:
                self.encrypt(mail)
            self.say("220 test")
            while line := self.rfile.readline().decode().strip():
                if not self.obey(mail, line):
                    return
        except (OSError, ssl.SSLError):
            return
        finally:
            if self.encrypted:  # the server closes only the socket that it handed out
                for part in (self.rfile, self.wfile, self.connection):
                    part.close()

    def encrypt(self, mail: MailServer) -> None:
        self.connection = mail.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.encrypted = True

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def obey(self, mail: MailServer, line: str) -> bool:
        verb = line.split()[0].upper()
        mail.commands.append(f"{'tls ' if self.encrypted else ''}{verb}")
        if verb in mail.refuses:
            self.say(mail.refuses[verb])
        elif verb == "EHLO":
            offers = ["250-test", "250-AUTH PLAIN LOGIN"] if self.encrypted else ["250-test"]
            if mail.context is not None and not self.encrypted:
                offers.append("250-STARTTLS")
            for offer in offers:
                self.say(offer)
            self.say("250 8BITMIME")
        elif verb == "STARTTLS":
            self.say("220 go ahead")
            self.encrypt(mail)
        elif verb == "AUTH":
            mail.logins.append(line)
            self.say("235 welcome")
        elif verb == "DATA":
            self.say("354 go on")
            lines = iter(self.rfile.readline, b".\r\n")
            mail.mails.append(b"".join(lines).decode())
            self.say("250 taken")
        else:
            self.say("221 bye" if verb == "QUIT" else "250 well")
        return verb != "QUIT"


@contextmanager
def taking_mail(context: ssl.SSLContext | None = None, **behaviour: Any) -> Iterator[MailServer]:
    """Run an SMTP server; with a context it offers STARTTLS."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    server = Server(("127.0.0.1", 0), _MailHandler)
    server.mail = MailServer(server.server_address[1], context, **behaviour)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.mail
    finally:
        server.mail.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what ``condition`` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
