"""The store as a whole: opening it, runs, deletion, many threads."""

import re
import threading

import numpy as np
import pytest
from store_cases import NOW, batch, judge, new_run, stored, submit, table

from snc_service.store import open_store
from snc_service.store.sql.database import schema
from snc_service.store.types import EventQuery, RunUnknown, StoreUnavailable, Window
from snc_service.wire import Policy

LAYERS = table("a", "b")


def schema_text() -> str:
    return "".join(schema.UPGRADES.values())


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    yield store
    store.close()


@pytest.mark.parametrize("url", ["", "snc.db", "mysql://x/y", "sqlite:///", "sqlite://x", "SQLITE"])
def test_an_unknown_url_is_a_value_error_that_says_what_is_expected(url):
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        open_store(url)


def test_an_unknown_url_is_not_repeated_it_may_hold_a_password():
    with pytest.raises(ValueError, match=r"got 'mysql'$") as raised:
        open_store("mysql://ann:secret@db/snc")
    assert "secret" not in str(raised.value)


def test_what_was_stored_is_there_after_reopening(store_url):
    first = open_store(store_url)
    new_run(first, config={"lr": 0.1, "name": "Zoë"}, tags=("x", "y"))
    first.batches.put_layer_table("r1", LAYERS)
    stored(first, batch(LAYERS, 0, [3], {"sigma": [[1, 2]]}))
    run = first.runs.get("r1")
    first.close()
    second = open_store(store_url)
    assert second.runs.get("r1") == run
    assert run.config == {"lr": 0.1, "name": "Zoë"}
    assert run.tags == ("x", "y")
    assert (run.last_step, run.layers, run.state) == (3, 2, "active")
    second.close()


def test_a_closed_store_says_so(store_url):
    store = open_store(store_url)
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.ping()
    with pytest.raises(StoreUnavailable, match="closed"):
        new_run(store)


def test_creating_a_run_twice_resumes_it(store):
    run, new = store.runs.create(
        "r1", name="n", project="p", config={}, tags=(), policy=None, now=NOW
    )
    assert new
    store.runs.finish("r1", "failed", NOW + 1)
    again, new = store.runs.create(
        "r1", name="other", project="q", config={"a": 1}, tags=("t",), policy=None, now=NOW + 2
    )
    assert not new
    assert (again.state, again.name, again.project, again.updated_at) == (
        "active",
        "n",
        "p",
        NOW + 2,
    )
    assert again.version > run.version
    rules = [e.event.rule for e in store.events.page(EventQuery(run="r1")).items]
    assert rules == ["run_finished", "run_started"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.runs.get("x"),
        lambda s: s.runs.finish("x", "finished", NOW),
        lambda s: s.runs.delete("x"),
        lambda s: s.batches.put_layer_table("x", LAYERS),
        lambda s: s.batches.layer_table("x", LAYERS.hash),
        lambda s: s.histories.latest("x"),
        lambda s: s.histories.metrics("x"),
        lambda s: s.histories.of_layers("x", "sigma", ["a"], Window()),
        lambda s: s.histories.of_scalar("x", "loss", Window()),
        lambda s: s.events.page(EventQuery(run="x")),
        lambda s: s.policies.of_run("x"),
        lambda s: s.policies.put_for_run("x", Policy(), author="", now=NOW, if_version=None),
        lambda s: s.policies.versions_of_run("x"),
    ],
)
def test_an_unknown_run_is_named(store, ask):
    with pytest.raises(RunUnknown, match="'x'"):
        ask(store)


def test_runs_are_listed_newest_first_page_by_page(store):
    for i in range(7):
        new_run(store, f"r{i}", project="even" if i % 2 == 0 else "odd")
    store.runs.finish("r4", "finished", NOW)
    seen, after = [], None
    while True:
        page = store.runs.page(project=None, state=None, limit=3, after=after)
        seen += [run.run for run in page.items]
        after = page.next
        if after is None:
            break
    assert seen == [f"r{i}" for i in range(6, -1, -1)]
    of_project = store.runs.page(project="even", state="active", limit=10, after=None)
    assert [run.run for run in of_project.items] == ["r6", "r2", "r0"]
    assert of_project.next is None


def test_closing_a_closed_run_changes_nothing(store):
    new_run(store)
    closed = store.runs.finish("r1", "finished", NOW + 1)
    assert closed.state == "finished"
    assert store.runs.finish("r1", "failed", NOW + 2) == closed


def test_a_run_goes_silent_once_and_wakes_with_the_next_batch(store):
    new_run(store)
    new_run(store, "r2", now=NOW + 65)
    store.batches.put_layer_table("r1", LAYERS)
    (event,) = store.runs.mark_silent(NOW + 50, NOW + 60)
    assert (event.run, event.event.rule, event.event.value) == ("r1", "run_silent", 60.0)
    assert store.runs.mark_silent(NOW + 50, NOW + 61) == []
    assert (store.runs.get("r1").state, store.runs.get("r2").state) == ("silent", "active")
    stored(store, batch(LAYERS, 0, [1], {"sigma": [[1, 1]]}), at=NOW + 70)
    assert store.runs.get("r1").state == "active"
    assert store.runs.get("r1").updated_at == NOW + 70


def test_a_run_heard_of_in_the_future_is_silent_too_and_a_little_ahead_is_not(store):
    new_run(store, "ahead", now=NOW + 86_400)
    new_run(store, "another service's clock", now=NOW + 8)
    (event,) = store.runs.mark_silent(NOW - 10, NOW)
    assert (event.run, event.event.value) == ("ahead", 10.0)
    assert store.runs.mark_silent(NOW - 10, NOW) == []


def test_late_batches_of_a_finished_run_are_kept_and_leave_it_finished(store):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    store.runs.finish("r1", "finished", NOW)
    stored(store, batch(LAYERS, 0, [1], {"sigma": [[1, 1]]}))
    assert store.runs.get("r1").state == "finished"
    assert store.runs.get("r1").last_step == 1


def test_nothing_of_a_deleted_run_is_left(store, monkeypatch):
    monkeypatch.setattr("snc_service.store.sql.records.deletion.SLICE_ROWS", 3)
    for run in ("r1", "r2"):
        new_run(store, run, config={"run": run}, policy=Policy())
        store.batches.put_layer_table(run, LAYERS)
        for seq in range(10):
            one = batch(LAYERS, seq, [seq], {"sigma": [[1, 2]]}, {"loss": [seq]}, dropped=1)
            stored(store, one, run=run)
    store.runs.delete("r1")
    with pytest.raises(RunUnknown):
        store.runs.get("r1")
    assert store.runs.get("r2").last_step == 9
    with store._database.read() as connection:
        tables = re.findall(r"create table (\w+) \((?=[^;]*\brun_id\b)", schema_text())
        assert len(tables) > 15
        for name in schema.table_names() & set(tables):
            rows = connection.execute(f"select distinct run_id from {name}").fetchall()
            assert rows in ([], [(2,)]), name


def test_a_deleted_runs_number_and_history_never_come_back(store):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    stored(store, batch(LAYERS, 0, [1], {"sigma": [[1, 1]]}))
    store.runs.delete("r1")
    new_run(store)
    assert store.runs.get("r1").last_step is None
    assert store.batches.layer_table("r1", LAYERS.hash) is None
    with store._database.read() as connection:
        assert connection.execute("select run_id from run").fetchall() == [(2,)]


def test_a_deletion_cut_short_is_finished_when_the_store_opens(store_url):
    store = open_store(store_url)
    new_run(store)
    with store._database.write() as connection:
        connection.execute("insert into deleted_run (run_id) values (1)")
        connection.execute("delete from run")
        connection.execute("delete from run_name")
    store.close()
    again = open_store(store_url)
    with again._database.read() as connection:
        for name in ("event", "run_config", "deleted_run"):
            assert connection.execute(f"select count(*) from {name}").fetchone() == (0,)
    again.close()


def test_pruning_deletes_old_runs_that_are_over(store):
    for run, state in (("old", "finished"), ("quiet", None), ("new", "failed"), ("alive", None)):
        new_run(store, run, now=NOW + 65 if run in ("new", "alive") else NOW)
        if state:
            store.runs.finish(run, state, NOW + 200 if run == "new" else NOW)
    store.runs.mark_silent(NOW + 50, NOW + 60)
    assert store.runs.prune(NOW - 1) == []
    assert store.runs.prune(NOW + 61) == ["old", "quiet"]
    left = store.runs.page(project=None, state=None, limit=10, after=None).items
    assert [run.run for run in left] == ["alive", "new"]


def test_shrinking_deletes_the_oldest_runs_that_are_over_until_the_rest_fits(store):
    for age, run in enumerate(("alive", "oldest", "older", "old")):
        new_run(store, run, now=NOW + age)
        store.batches.put_layer_table(run, LAYERS)
        rows = np.random.default_rng(age).random((1_000, 2))
        stored(store, batch(LAYERS, 0, range(1_000), {"sigma": rows}), run=run, at=NOW + age)
        if run != "alive":
            store.runs.finish(run, "finished", NOW + age)
        if run == "older":
            store.fold(60, now=NOW + 3_600)
    assert store.runs.shrink(40_000) == []
    assert store.runs.shrink(3 * 8_000) == ["oldest"]
    assert store.runs.shrink(0) == ["older", "old"]
    assert store.runs.shrink(0) == []
    assert store.runs.get("alive").last_step == 999
    (entry,), _ = store.audit.page(subject="oldest")
    assert (entry.action, entry.author) == ("run_deleted", "retention")


def test_readers_and_writers_run_at_once_and_see_whole_batches(store):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            got = store.histories.of_layers("r1", "sigma", ["a", "b"], Window())
            if not (got.mean[0] == got.steps).all() or not (got.mean[1] == got.steps).all():
                wrong.append(got)
            now = store.histories.latest("r1").metric("sigma")
            if now is not None and now[0] != now[1]:
                wrong.append(now)

    def write(name: str, offset: int) -> None:
        for seq in range(40):
            steps = [offset + 2 * seq, offset + 2 * seq + 1]
            rows = [[step, step] for step in steps]
            outcome = submit(store, [batch(LAYERS, seq, steps, {"sigma": rows}, writer=name)])
            wrong.extend(o.error for o in outcome if o.error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(f"w{i}", 100 * i)) for i in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert len(store.histories.of_layers("r1", "sigma", ["a"], Window()).steps) == 240


def test_two_stores_over_one_file_act_as_one(store_url):
    one, two = open_store(store_url), open_store(store_url)
    new_run(one)
    two.batches.put_layer_table("r1", LAYERS)
    first = batch(LAYERS, 0, [0], {"sigma": [[1, 2]]})
    stored(one, first)
    assert submit(two, [first])[0].duplicate
    stored(two, batch(LAYERS, 1, [1], {"sigma": [[3, 4]]}))
    np.testing.assert_array_equal(
        one.histories.of_layers("r1", "sigma", ["a", "b"], Window()).mean, [[1, 3], [2, 4]]
    )
    assert one.runs.get("r1") == two.runs.get("r1")
    one.close()
    two.close()


def test_size_grows_with_what_is_stored(store):
    new_run(store)
    wide = table(*(f"l{i}" for i in range(2_000)))
    store.batches.put_layer_table("r1", wide)
    before = store.size_bytes()
    rows = np.random.default_rng(0).random((50, 2_000))
    judge(store).batches.ingest([])
    stored(store, batch(wide, 0, range(50), {"sigma": rows}))
    assert store.size_bytes() - before > rows.size * 4
