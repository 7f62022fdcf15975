"""A Citus cluster that somebody else runs: ``SNC_TEST_CITUS`` is the URL of one of its databases.

The URL names the coordinator, as a user who may create databases and extensions on every node
under the same name and password. Workers are those that this database knows. A test gets a database
of its own on all nodes, distributed by our own statements.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from snc_service.store import distribute_store, open_store

VARIABLE = "SNC_TEST_CITUS"
ABSENT = f"set {VARIABLE} to the URL of the coordinator of a Citus cluster"
_WORKERS = (
    "select nodename, nodeport from pg_dist_node where groupid <> 0 and noderole = 'primary' "
    "order by 1, 2"
)


class CitusCluster:
    """The nodes, and new databases on them."""

    def __init__(self, url: str) -> None:
        self.coordinator = conninfo_to_dict(url)
        self._names = (f"snc_test_{os.getpid()}_{n}" for n in count())
        with self._connected(self.coordinator) as connection:
            self.workers = connection.execute(_WORKERS).fetchall()
        assert self.workers, "the cluster has no worker"

    def new_url(self) -> str:
        """Return the URL of a new store that is distributed, as `drop` takes it."""
        name = next(self._names)
        for node in self._nodes():
            with self._connected(node) as connection:
                connection.execute(f"create database {name} template template0 encoding 'UTF8'")
            with self._connected(node | {"dbname": name}) as connection:
                connection.execute("create extension citus")
        with self._connected(self.coordinator | {"dbname": name}) as connection:
            host, port = self.coordinator["host"], int(self.coordinator.get("port", 5432))
            connection.execute("select citus_set_coordinator_host(%s, %s)", (host, port))
            for worker in self.workers:
                connection.execute("select citus_add_node(%s, %s)", worker)
        url = _url(self.coordinator | {"dbname": name})
        open_store(url).close()
        distribute_store(url, apply=True)
        return url

    def drop(self, url: str) -> None:
        """Drop a database on all nodes, whoever uses it."""
        name = conninfo_to_dict(url)["dbname"]
        for node in self._nodes():
            with self._connected(node) as connection:
                connection.execute(f"drop database {name} with (force)")

    def _nodes(self) -> list[dict[str, Any]]:
        workers = [self.coordinator | {"host": h, "port": p} for h, p in self.workers]
        return [self.coordinator, *workers]

    @contextmanager
    def _connected(self, node: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(make_conninfo(**node), autocommit=True) as connection:
            yield connection


def _url(node: dict[str, Any]) -> str:
    password = f":{node['password']}" if node.get("password") else ""
    port = node.get("port", 5432)
    return f"postgresql://{node['user']}{password}@{node['host']}:{port}/{node['dbname']}"
