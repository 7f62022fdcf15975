"""``snc db``: on the store itself, in use by a service or not."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from snc_service.cli.failure import Failure
from snc_service.cli.output import print_json
from snc_service.settings import Settings
from snc_service.store import back_up_store, distribute_store, open_store, upgrade_store
from snc_service.store.types import StoreDamaged, StoreError, Verified


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


def verify(arguments: Namespace) -> int:
    """Compare everything stored with its checksums; 1 if anything is damaged."""
    with _one_sentence(), closing(open_store(_url(arguments))) as store:
        found = store.damages.verify()
    is_sound = not found.damaged and not found.engine
    if arguments.json:
        print_json(
            {
                "tiles": found.tiles,
                "batches": found.batches,
                "without_checksum": found.unchecked,
                "damaged": [_shown(error) for error in found.damaged],
                "engine": list(found.engine),
            }
        )
        return 0 if is_sound else 1
    for sentence in (*map(str, found.damaged), *found.engine):
        print(sentence)
    old = f", {found.unchecked} of them of an earlier release, without a checksum"
    print(
        f"{found.tiles} tiles and {found.batches} recent batches were read"
        f"{old if found.unchecked else ''}: "
        + ("everything is as it was stored." if is_sound else f"{_number(found)} damaged.")
    )
    return 0 if is_sound else 1


def repair(arguments: Namespace) -> int:
    """Drop what is damaged, place by place, and say what; 1 if the file itself stays damaged."""
    with _one_sentence(), closing(open_store(_url(arguments))) as store:
        done = []
        for finding in store.damages.repair(now=time.time()):
            done.append({**_shown(finding.damage), "done": finding.done})
            if not arguments.json:
                print(f"{finding.damage}\n  {finding.done}")
        left = store.damages.verify()
    if arguments.json:
        print_json({"repaired": done, "engine": list(left.engine)})
    for sentence in () if arguments.json else left.engine:
        print(sentence)
    if left.engine and not arguments.json:
        print("The file itself is damaged: restore a backup.")
    elif not arguments.json:
        print(f"{len(done)} places were repaired; {len(left.damaged)} are damaged.")
    return 1 if left.engine or left.damaged else 0


def _shown(error: StoreDamaged) -> dict[str, Any]:
    return {
        "run": error.run,
        "place": error.place,
        "metrics": list(error.metrics),
        "layers": list(error.layers),
        "steps": list(error.steps),
    }


def _number(found: Verified) -> str:
    number = len(found.damaged) + len(found.engine)
    return f"{number} place is" if number == 1 else f"{number} places are"


def citus(arguments: Namespace) -> int:
    """Print the statements that distribute the tables over a Citus cluster, or run them.

    Of a PostgreSQL store, those that it lacks; otherwise all of them.
    """
    from snc_service.store.sql.database import citus

    url = _url(arguments)
    if arguments.apply or url.startswith(("postgresql://", "postgres://")):
        with _one_sentence():
            todo = distribute_store(url, apply=arguments.apply)
    else:
        todo = citus.statements()
    print("\n".join(f"{statement};" for statement in todo) or "Nothing is missing.")
    return 0


def _url(arguments: Namespace) -> str:
    return Settings.from_env(os.environ, store=arguments.store).store


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except (StoreError, ValueError) as error:
        raise Failure(str(error)) from None
