"""Commands: stored for a run's job and sent with each acknowledgement until the job has them."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.records import audit, events, runs
from snc_service.store.types import END_STATES, CommandsWaiting, Event, RunClosed, RunFull
from snc_service.store.types.records import MAX_WAITING_COMMANDS, StoredCommand
from snc_service.wire import CommandAction

_COLUMNS = "id, action, reason, author, at, seen_at"


def add(
    connection: Connection,
    run: str,
    action: CommandAction,
    reason: str,
    *,
    author: str,
    now: float,
    most: int,
) -> StoredCommand:
    """Store a command with its event and audit entry; a run has at most ``most``."""
    run_id = runs.lock(connection, run)
    found = runs.load(connection, run)
    if found.state in END_STATES:
        raise RunClosed(f"run {run} is {found.state}: no job would get the command")
    if len(waiting(connection, run_id)) >= MAX_WAITING_COMMANDS:
        raise CommandsWaiting(
            f"commands that wait for run {run} must be at most {MAX_WAITING_COMMANDS}: "
            "its job has taken none of them yet"
        )
    (last,) = connection.execute(
        "select coalesce(max(id), 0) from command where run_id = ?", (run_id,)
    ).fetchone()
    if last >= most:
        raise RunFull("commands", "commands", most, field="action")
    command = StoredCommand(int(last) + 1, action, reason, author, now)
    connection.execute(
        "insert into command (run_id, id, action, reason, author, at) values (?, ?, ?, ?, ?, ?)",
        (run_id, command.id, action, reason, author, now),
    )
    message = f"{action} asked for by {author}" + (f": {reason}" if reason else "")
    event = Event(found.last_step or 0, "command", "info", message, value=float(command.id))
    events.append_to(connection, run_id, run, [event], now)
    audit.append(
        connection, "command_sent", run, author=author, now=now, detail=f"{action}: {reason}"
    )
    return command


def page(connection: Connection, run_id: int, limit: int, below: int) -> list[StoredCommand]:
    """Return a run's commands with an id below ``below``, newest first."""
    rows = connection.execute(
        f"select {_COLUMNS} from command where run_id = ? and id < ? order by id desc limit ?",
        (run_id, below, limit),
    )
    return [StoredCommand(*row) for row in rows]


def waiting(connection: Connection, run_id: int) -> tuple[StoredCommand, ...]:
    """Return the commands that the job has not acknowledged, oldest first."""
    rows = connection.execute(
        f"select {_COLUMNS} from command where run_id = ? and seen_at is null order by id",
        (run_id,),
    )
    return tuple(StoredCommand(*row) for row in rows)


def seen(connection: Connection, run_id: int, last: int, now: float) -> None:
    """Mark all commands up to ``last`` as received by the job."""
    connection.execute(
        "update command set seen_at = ? where run_id = ? and id <= ? and seen_at is null",
        (now, run_id, last),
    )


def void(connection: Connection, run_id: int, now: float) -> None:
    """Void the waiting commands of an ended run, so that they do not stop a resumed job."""
    connection.execute(
        "update command set seen_at = ? where run_id = ? and seen_at is null", (now, run_id)
    )
