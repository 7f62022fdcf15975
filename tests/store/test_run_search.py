"""The search for runs on both engines, against a scan of a list in Python."""

import fnmatch
import itertools
import json
import math
import random
import sqlite3
from contextlib import closing

import pytest
from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import open_store
from snc_service.store.engines.sqlite import WORDS
from snc_service.store.engines.sqlite_file import APPLICATION_ID
from snc_service.store.sql.database import run_terms, schema
from snc_service.store.types.run_search import (
    ORDERS,
    NumberCondition,
    RunChange,
    RunSearch,
    TextCondition,
)

LAYERS = [table("blocks.0.qkv", "head"), table("fc_1", "fc%2")]
NAN = float("nan")


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url)) as opened:
        yield opened


@pytest.fixture
def runs(store):
    """Return what 30 runs hold, and store them."""
    rng = random.Random(7)
    made = []
    for i in range(30):
        run, project = f"r{i:02}", rng.choice(["gpt", "vit", "GPT"])
        config = rng.choice(
            [
                {"lr": 0.01, "optimizer": {"name": "adamw"}},
                {"lr": 0.1, "flag": True, "sizes": [1, 2, 8]},
                {"lr": "0.01", "optimizer": {"name": "100%_sure"}},
                {},
            ]
        )
        tags = rng.sample(["base_line", "baseXline", "Zoë"], rng.randrange(3))
        name = rng.choice(["Small one", "small two", "big%", "big!x"])
        new_run(store, run, project, name=name, config=config, tags=tags)
        about = {"run": run, "name": name, "project": project, "config": config, "tags": tags}
        layers = LAYERS[i % 2]
        ratio, loss = rng.choice([0.5, 1.5, NAN]), rng.choice([1.25, 2.5, NAN, None])
        if i % 5:
            store.batches.put_layer_table(run, layers)
            scalars = {} if loss is None else {"loss": [loss]}
            values = {"sigma": [[ratio, 0.25]], "threshold": [[1, 1]]}
            stored(store, batch(layers, 0, [i], values, scalars), run=run, at=NOW + i % 4)
            about |= {"layers": layers.names, "loss": loss, "ratio": ratio, "step": i}
            about["duration"] = i % 4
        if i % 3 == 0:
            store.runs.finish(run, rng.choice(["finished", "failed"]), NOW + i % 4)
        if i % 7 == 0:
            store.runs.change(run, RunChange(archived=True), author="a", now=NOW)
        made.append(about | {"stored": store.runs.get(run), "number": i})
    return made


def matches(pattern: str, text: str | None) -> bool:
    if text is None:
        return False
    if not set(pattern) & set("*?"):
        return text == pattern

    def lower(given: str) -> str:
        return "".join(c.lower() if c.isascii() else c for c in given)

    return fnmatch.fnmatchcase(lower(text), lower(pattern).replace("[", "[[]"))


def number_of(about: dict, field: str):
    if field.startswith("config."):
        found = [n for name, _, n in run_terms.terms(about["config"], ()) if name == field]
        return [n for n in found if n is not None]
    run = about["stored"]
    value = {
        "loss": run.loss,
        "ratio": run.worst_ratio,
        "step": run.last_step,
        "breaches": run.breaches,
        "duration": run.updated_at - run.created_at,
        "incidents": 0,
    }[field]
    return [] if value is None else [value]


def holds(about: dict, condition) -> bool:
    field = condition.field
    if isinstance(condition, NumberCondition):
        compare = {
            "=": float.__eq__, "!=": float.__ne__, "<": float.__lt__,
            "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__,
        }[condition.operator]  # fmt: skip
        found = any(compare(float(n), condition.value) for n in number_of(about, field))
    else:
        run = about["stored"]
        texts = {
            "run": [run.run],
            "name": [run.name],
            "project": [run.project],
            "tag": about["tags"],
            "state": [run.state],
            "layer": about.get("layers", []),
            "ended": [run.ended_in],
            "worst": [run.worst_layer],
            "any": [run.run, run.name, run.project, run.state, run.worst_layer or "", *run.tags],
        }
        of_config = [v for n, v, _ in run_terms.terms(about["config"], ()) if n == field]
        found = any(matches(condition.pattern, text) for text in texts.get(field, of_config))
    return found != condition.negated


CONDITIONS = [
    *(
        TextCondition(field, pattern, negated)
        for field, pattern in [
            ("run", "r0*"),
            ("run", "r01"),
            ("name", "*small*"),
            ("name", "big%"),
            ("name", "*%"),
            ("name", "*!*"),
            ("project", "gpt"),
            ("project", "gp?"),
            ("tag", "base_line"),
            ("tag", "base_*"),
            ("tag", "zo*"),
            ("state", "failed"),
            ("layer", "*QKV*"),
            ("layer", "fc_?"),
            ("layer", "fc%2"),
            ("ended", "nonfinite"),
            ("ended", "*"),
            ("worst", "head"),
            ("any", "*SMALL*"),
            ("any", "*base*"),
            ("config.lr", "0.01"),
            ("config.optimizer.name", "*%_*"),
            ("config.flag", "true"),
            ("config.none", "*"),
        ]
        for negated in (False, True)
    ),
    *(
        NumberCondition(field, operator, value, negated)
        for field, value in [
            ("loss", 2.5), ("ratio", 1.0), ("step", 7), ("config.lr", 0.01), ("config.sizes", 2.0),
            ("duration", 2.0), ("incidents", 0.0),
        ]
        for operator in ("=", "!=", "<", "<=", ">", ">=")
        for negated in (False, True)
    ),
]  # fmt: skip


def found(store, **search) -> list[str]:
    return [run.run for run in store.runs.search(RunSearch(limit=500, **search)).items]


def test_a_search_finds_what_a_scan_of_the_runs_finds(store, runs):
    rng = random.Random(3)
    newest = sorted(runs, key=lambda about: -about["number"])
    single = [(condition,) for condition in CONDITIONS]
    several = [tuple(rng.sample(CONDITIONS, rng.randrange(2, 5))) for _ in range(60)]
    hits = 0
    for conditions in single + several:
        expected = [a["run"] for a in newest if all(holds(a, c) for c in conditions)]
        assert found(store, conditions=conditions) == expected, conditions
        counted = store.runs.summary(RunSearch(conditions)).states
        assert sum(counted.values()) == len(expected)
        hits += 0 < len(expected) < len(runs)
    assert hits > 60  # most of the searches tell runs apart


def test_the_archive_and_the_project_of_a_token_bound_a_search(store, runs):
    archived = {about["run"] for about in runs if about["number"] % 7 == 0}
    assert set(found(store, archived="yes")) == archived
    assert set(found(store, archived="no")) == {a["run"] for a in runs} - archived
    mine = {about["run"] for about in runs if about["project"] == "gpt"}
    assert set(found(store, project="gpt")) == mine
    assert store.runs.summary(RunSearch(project="gpt")).projects == ("gpt",)
    everything = store.runs.summary(RunSearch())
    assert everything.projects == ("GPT", "gpt", "vit")
    assert everything.config == ("flag", "lr", "optimizer.name", "sizes")
    assert set(everything.tags) == {tag for about in runs for tag in about["tags"]}


def test_pages_hold_every_run_once_in_order_and_those_without_a_value_last(store, runs):
    for order, descending in itertools.product([*ORDERS, "config.lr"], (False, True)):
        listed, after = [], None
        for _ in range(10):
            page = store.runs.search(
                RunSearch(order=order, descending=descending, limit=7, after=after)
            )
            listed += [run.run for run in page.items]
            after = page.next
            if after is None:
                break
        assert sorted(listed) == sorted(about["run"] for about in runs)
        if order in ("loss", "ratio", "step", "duration", "config.lr"):
            of = {about["run"]: number_of(about, order) for about in runs}
            values = [of[run][0] if of[run] else None for run in listed]
            known = [value for value in values if value is not None]
            assert values == known + [None] * (len(values) - len(known))
            assert known == sorted(known, reverse=descending)
        if order == "name":
            names = [next(a["name"] for a in runs if a["run"] == run) for run in listed]
            assert names == sorted(names, reverse=descending)


def test_what_ended_badly_comes_first_until_somebody_acknowledges_it(store):
    for run, sigma in (("fine", 0.5), ("broken", NAN), ("above", 1.5), ("next", 0.5)):
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS[0])
        values = {"sigma": [[sigma, 0.5]], "threshold": [[1, 1]]}
        stored(store, batch(LAYERS[0], 0, [1], values), run=run)
        store.runs.finish(run, "finished", NOW + 1)
    assert [store.runs.get(run).ended_in for run in ("fine", "broken", "above")] == [
        None,
        "nonfinite",
        "breach",
    ]
    assert found(store, order="attention") == ["broken", "above", "next", "fine"]
    store.runs.acknowledge("broken", author="ann", now=NOW + 2)
    assert store.runs.get("broken").acknowledged_by == "ann"
    assert found(store, order="attention") == ["above", "next", "broken", "fine"]
    # It reports again: what was known of it is old.
    store.runs.create("broken", name="", project="p", config={}, tags=(), policy=None, now=NOW + 3)
    values = {"sigma": [[NAN, 0.5]], "threshold": [[1, 1]]}
    stored(store, batch(LAYERS[0], 1, [2], values), run="broken", at=NOW + 4)
    store.runs.finish("broken", "failed", NOW + 5)
    assert found(store, order="attention") == ["broken", "above", "next", "fine"]


def test_a_loss_that_is_not_finite_is_a_bad_end_and_a_held_breach_is_none(store):
    new_run(store, "loss")
    new_run(store, "held")
    for run in ("loss", "held"):
        store.batches.put_layer_table(run, LAYERS[0])
    stored(
        store,
        batch(LAYERS[0], 0, [1, 2], {"sigma": [[0.5, 0.5]] * 2}, {"loss": [1.0, NAN]}),
        run="loss",
    )
    held = {"sigma": [[1.5, 0.5]], "threshold": [[1, 1]], "scale": [[0.6, 1]]}
    stored(store, batch(LAYERS[0], 0, [1], held, {"loss": [1.5]}), run="held")
    for run in ("loss", "held"):
        store.runs.finish(run, "finished", NOW + 1)
    assert (store.runs.get("loss").loss, store.runs.get("loss").ended_in) == (None, "nonfinite")
    assert (store.runs.get("held").loss, store.runs.get("held").ended_in) == (1.5, None)
    stored(store, batch(LAYERS[0], 1, [2], held), run="held")
    assert store.runs.get("held").loss == 1.5  # a batch without a loss does not forget it


def test_a_change_is_kept_and_found_and_written_down(store):
    new_run(store, "r", config={"lr": 1}, tags=("old",))
    before = store.runs.get("r")
    changed = store.runs.change(
        "r", RunChange("new name", ("a", "b"), "line 1\nline 2", True), author="ann", now=NOW + 5
    )
    assert (changed.name, changed.tags, changed.note) == ("new name", ("a", "b"), "line 1\nline 2")
    assert changed.archived
    assert changed.version > before.version
    assert changed.updated_at == before.updated_at  # the job said nothing
    assert found(store, conditions=(TextCondition("tag", "b"),)) == ["r"]
    assert found(store, conditions=(TextCondition("tag", "old"),)) == []
    assert found(store, conditions=(NumberCondition("config.lr", "=", 1.0),)) == ["r"]
    again = store.runs.change("r", RunChange(archived=False), author="ann", now=NOW + 6)
    assert (again.name, again.tags, again.archived) == ("new name", ("a", "b"), False)
    entry = store.audit.page(limit=10)[0][1]
    assert (entry.action, entry.author, entry.detail) == (
        "run_changed",
        "ann",
        "name, tags, note, archived",
    )


def test_terms_are_bounded_whatever_a_config_holds():
    deep: dict = {}
    inner = deep
    for _ in range(100):
        inner["x"] = {}
        inner = inner["x"]
    inner["y"] = 1
    many = {f"k{i}": i for i in range(5_000)}
    odd = {"nul": "a\0b", "big": 10**400, "nan": math.inf, "none": None, "text": "x" * 10_000}
    assert run_terms.terms(deep, ()) == []
    assert len(run_terms.terms(many, ["t"] * 70)) == run_terms.MOST_TERMS
    found = {name: (value, number) for name, value, number in run_terms.terms(odd, ())}
    assert found["config.nul"] == ("a\N{REPLACEMENT CHARACTER}b", None)
    assert found["config.big"][1] is None
    assert found["config.none"] == ("null", None)
    assert len(found["config.text"][0]) == run_terms.MOST_CHARACTERS


def test_a_store_of_the_version_before_finds_its_runs_by_their_config(tmp_path):
    path = tmp_path / "snc.db"
    with closing(sqlite3.connect(path)) as old:
        for version in range(1, run_terms.SINCE):
            for statement in schema.UPGRADES[version].format(**WORDS).split(";"):
                old.execute(statement)
        old.execute("insert into run_name (run_id, run) values (1, 'r1')")
        old.execute(
            "insert into run (run_id, run, name, project, state, created_at, updated_at) "
            f"values (1, 'r1', 'first', 'p', 'active', {NOW}, {NOW})"
        )
        old.execute(
            "insert into run_config (run_id, config, tags) values (1, ?, ?)",
            (json.dumps({"lr": 0.5}), json.dumps(["t"])),
        )
        old.execute(f"pragma application_id = {APPLICATION_ID}")
        old.execute(f"pragma user_version = {run_terms.SINCE - 1}")
        old.commit()
    with closing(open_store(f"sqlite:///{path}")) as store:
        condition = NumberCondition("config.lr", "=", 0.5)
        assert found(store, conditions=(condition, TextCondition("tag", "t"))) == ["r1"]
