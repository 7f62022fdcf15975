"""``snc db upgrade`` and ``snc db backup``: on the store itself, in use by a service or not."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snc_service.cli.failure import Failure
from snc_service.cli.output import print_json
from snc_service.settings import Settings
from snc_service.store import back_up_store, upgrade_store
from snc_service.store.types import StoreError


def upgrade(arguments: Namespace) -> int:
    """Upgrade a store of an earlier release to this one, completely or not at all."""
    with _one_sentence():
        before, now = upgrade_store(_url(arguments))
    if arguments.json:
        print_json({"before": before, "now": now})
    elif before == now:
        print(f"The store is at version {now} already: nothing to do.")
    elif before:
        print(f"The store was at version {before} and is at version {now} now.")
    else:
        print(f"There was no store: an empty one is there now, at version {now}.")
    return 0


def backup(arguments: Namespace) -> int:
    """Copy an embedded store to a new file; for PostgreSQL, name the tool for it."""
    target = Path(arguments.file)
    with _one_sentence():
        back_up_store(_url(arguments), target)
    size = target.stat().st_size
    if arguments.json:
        print_json({"file": str(target), "bytes": size})
    else:
        print(f"{target}: {size} bytes. It is a store itself: --store sqlite:///{target}")
    return 0


def citus(arguments: Namespace) -> int:
    """Print the statements that distribute the tables over a Citus cluster."""
    from snc_service.store.sql.database import citus

    print("\n".join(f"{statement};" for statement in citus.statements()))
    return 0


def _url(arguments: Namespace) -> str:
    return Settings.from_env(os.environ, store=arguments.store).store


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except (StoreError, ValueError) as error:
        raise Failure(str(error)) from None
