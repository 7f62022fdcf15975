"""Tokens, commands, the audit log, and the way of an older store to this release."""

import sqlite3
import threading

import pytest
from store_cases import NOW, batch, judge, new_run, submit, table

from snc_service.store import open_store
from snc_service.store.engines.sqlite import WORDS
from snc_service.store.engines.sqlite_file import APPLICATION_ID
from snc_service.store.sql.database import schema
from snc_service.store.types import (
    CommandsWaiting,
    EventQuery,
    QuotaExceeded,
    RunClosed,
    RunUnknown,
    Submission,
    TokenExists,
    TokenUnknown,
)
from snc_service.store.types.records import MAX_WAITING_COMMANDS, Token
from snc_service.wire import Policy

LAYERS = table("a")


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    yield store
    store.close()


def token(name="ci", **changes):
    given = {"id": name, "digest": 64 * "0", "scopes": ("ingest", "read"), "project": None,
             "author": "root", "created_at": NOW}  # fmt: skip
    return Token(name=name, **(given | changes))


def command(store, action="stop", reason="", run="r1"):
    return store.commands.add(run, action, reason, author="anna", now=NOW)


def send(store, seq, seen=0):
    """Send a batch that says which command its job has; return what waits."""
    item = Submission("r1", batch(LAYERS, seq, [seq], {"sigma": [[1]]}), seq, NOW + seq, seen)
    (outcome,) = judge(store).batches.ingest([item])
    assert outcome.error is None
    return [each.id for each in outcome.commands]


def audited(store, **filters):
    entries, _ = store.audit.page(**filters)
    return [(each.author, each.action, each.subject, each.detail) for each in entries]


def test_a_token_is_kept_as_it_was_made(store):
    made = [token("a"), token("b", project="p", expires_at=NOW + 1, created_at=NOW + 1)]
    for each in made:
        store.tokens.add(each)
    assert store.tokens.all() == made


def test_a_name_is_given_once_for_ever(store):
    store.tokens.add(token())
    store.tokens.revoke("ci", author="root", now=NOW)
    with pytest.raises(TokenExists, match="ci"):
        store.tokens.add(token(id="other"))
    assert len(store.tokens.all()) == 1


def test_a_token_is_revoked_once(store):
    store.tokens.add(token())
    assert store.tokens.revoke("ci", author="root", now=NOW + 1).revoked_at == NOW + 1
    assert store.tokens.revoke("ci", author="root", now=NOW + 2).revoked_at == NOW + 1
    assert [action for _, action, _, _ in audited(store)] == ["token_revoked", "token_created"]
    with pytest.raises(TokenUnknown):
        store.tokens.revoke("nobody", author="root", now=NOW)


def test_a_quota_counts_the_runs_that_are_there(store):
    for run in ("r1", "r2"):
        new_run(store, run, author="ci", quota=2)
    new_run(store, "r2", author="ci", quota=2)  # resumed, not created
    with pytest.raises(QuotaExceeded, match="at most 2"):
        new_run(store, "r3", author="ci", quota=2)
    with pytest.raises(RunUnknown):
        store.runs.get("r3")
    new_run(store, "r3", author="other", quota=2)
    store.runs.delete("r1", author="root", now=NOW)
    new_run(store, "r4", author="ci", quota=2)


def test_a_runs_project_is_known_without_the_run(store):
    new_run(store, project="p7")
    assert store.runs.project_of("r1") == "p7"
    with pytest.raises(RunUnknown):
        store.runs.project_of("r2")


def test_a_command_waits_until_the_job_says_that_it_has_it(store):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    assert send(store, 0) == []
    assert [command(store).id, command(store, "pause").id] == [1, 2]
    assert send(store, 1) == [1, 2]
    assert send(store, 1) == [1, 2]  # a duplicate: its acknowledgement was lost
    assert send(store, 2, seen=1) == [2]
    assert send(store, 3, seen=2) == []
    assert send(store, 4) == []  # a job that starts anew is not stopped by what an earlier one got
    assert [(each.id, each.seen_at) for each in store.commands.page("r1")] == [
        (2, NOW + 3),
        (1, NOW + 2),
    ]


def test_a_refused_batch_neither_takes_nor_loses_a_command(store):
    new_run(store)
    command(store)
    (outcome,) = submit(store, [batch(LAYERS, 0, [0], {"sigma": [[1]]})])
    assert outcome.error is not None
    store.batches.put_layer_table("r1", LAYERS)
    assert send(store, 0) == [1]


def test_a_command_leaves_an_event_and_who_sent_it(store):
    new_run(store)
    command(store, "checkpoint", "before the move")
    (event, _) = store.events.page(EventQuery(run="r1")).items
    assert (event.event.rule, event.event.severity) == ("command", "info")
    assert event.event.message == "checkpoint asked for by anna: before the move"
    assert audited(store) == [("anna", "command_sent", "r1", "checkpoint: before the move")]


def test_a_closed_run_takes_no_command_and_what_it_did_not_take_is_void(store):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    command(store)
    store.runs.finish("r1", "finished", NOW + 1)
    with pytest.raises(RunClosed, match="finished"):
        command(store)
    new_run(store)  # resumed
    assert send(store, 0) == []
    assert command(store).id == 2
    assert send(store, 1) == [2]


def test_only_so_many_commands_wait(store):
    new_run(store)
    for _ in range(MAX_WAITING_COMMANDS):
        command(store)
    with pytest.raises(CommandsWaiting, match=str(MAX_WAITING_COMMANDS)):
        command(store)


def test_commands_of_many_threads_get_numbers_of_their_own(store):
    new_run(store)
    threads = [threading.Thread(target=command, args=(store,)) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.id for each in store.commands.page("r1")] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_deleted_run_takes_its_commands_with_it(store):
    new_run(store)
    command(store)
    store.runs.delete("r1", author="root", now=NOW)
    new_run(store)
    assert store.commands.page("r1") == []
    assert command(store).id == 1


def test_every_change_is_in_the_audit_log_with_its_author(store):
    new_run(store)
    store.policies.put_for_run("r1", Policy(), author="anna", now=NOW, if_version=None)
    store.policies.put_for_project("p", Policy(), author="bob", now=NOW, if_version=None)
    store.tokens.add(token(project="p"))
    store.runs.delete("r1", author="carl", now=NOW)
    assert audited(store) == [
        ("carl", "run_deleted", "r1", ""),
        ("root", "token_created", "ci", "scopes ingest, read; project p"),
        ("bob", "project_policy_changed", "p", "version 1"),
        ("anna", "run_policy_changed", "r1", "version 1"),
    ]
    assert audited(store, author="bob") == audited(store, subject="p")
    assert audited(store, action="token_created", author="nobody") == []


def test_a_run_that_is_pruned_for_its_age_is_audited_too(store):
    new_run(store)
    store.runs.finish("r1", "finished", NOW)
    assert store.runs.prune(NOW + 1) == ["r1"]
    assert audited(store) == [("retention", "run_deleted", "r1", "")]


def test_the_audit_log_is_read_in_pages(store):
    for i in range(5):
        store.tokens.add(token(f"t{i}", created_at=NOW + i))
    seen, after = [], None
    while True:
        entries, after = store.audit.page(limit=2, after=after)
        seen += [each.subject for each in entries]
        if after is None:
            break
    assert seen == ["t4", "t3", "t2", "t1", "t0"]


def test_a_change_that_fails_leaves_no_entry(store):
    with pytest.raises(RunUnknown):
        store.runs.delete("nothing", author="root", now=NOW)
    with pytest.raises(RunUnknown):
        command(store, run="nothing")
    assert audited(store) == []


def test_events_of_one_project_are_told_apart(store):
    new_run(store, "r1", project="p")
    new_run(store, "r2", project="q")
    page = store.events.page(EventQuery(project="q"))
    assert [each.run for each in page.items] == ["r2"]


def test_a_store_of_the_first_release_is_upgraded_where_it_lies(tmp_path):
    path = tmp_path / "snc.db"
    old = sqlite3.connect(path)
    for statement in schema.UPGRADES[1].format(**WORDS).split(";"):
        old.execute(statement)
    old.execute("insert into run_name (run_id, run) values (1, 'r1')")
    old.execute(
        "insert into run (run_id, run, name, project, state, created_at, updated_at) "
        f"values (1, 'r1', 'first', 'p', 'active', {NOW}, {NOW})"
    )
    old.execute("insert into run_config (run_id, config, tags) values (1, '{}', '[]')")
    old.execute(f"pragma application_id = {APPLICATION_ID}")
    old.execute("pragma user_version = 1")
    old.commit()
    old.close()
    store = open_store(f"sqlite:///{path}")
    assert store.runs.get("r1").name == "first"
    store.batches.put_layer_table("r1", LAYERS)
    command(store)
    assert send(store, 0) == [1]
    store.tokens.add(token())
    store.close()
    again = sqlite3.connect(path)
    assert again.execute("pragma user_version").fetchone() == (schema.VERSION,)
    again.close()
