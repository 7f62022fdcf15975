"""``snc backtest`` in real processes: over files, and over runs of a real service."""

import json
import random
import re
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from backtest_cases import LAYERS, course, save, trouble
from feed import Feed
from test_cli import serving, snc

from snc_service.backtest.replay import replay
from snc_service.cli import main, stored_rows
from snc_service.cli.service import ServiceClient
from snc_service.cli.stored_rows import layer_names, stored_run

FIELDS = ("step", "rule", "severity", "message", "layer", "layers", "value", "limit")
OTHERS = (
    "run_started",
    "rewound",
    "dropped",
    "rules_changed",
    "annotation",
)  # of the service, not of its rules


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("backtest") / "snc.db") as url:
        yield url


def shown(events) -> list[tuple]:
    return [tuple(getattr(event, name) for name in FIELDS) for event in events]


def stored_events(url: str, run: str) -> list[tuple]:
    """Return the events that ingest stored, those of detection, oldest first."""
    with ServiceClient(url) as service:
        items = list(service.items("runs", run, "events", limit=10_000))
    return [
        tuple(item[name] for name in FIELDS) for item in items[::-1] if item["rule"] not in OTHERS
    ]


def replayed(url: str, run: str) -> list[tuple]:
    with ServiceClient(url) as service:
        (found,) = replay(stored_run(service, run), [None])
    return shown(found.events)


def send(url: str, run: str, metrics, scalars, cuts, first: int = 1, layers=LAYERS) -> Feed:
    """Send a run in batches that end before the rows ``cuts``."""
    feed = Feed(url, run, layers)
    return more(feed, metrics, scalars, cuts, first)


def more(feed: Feed, metrics, scalars, cuts, first: int) -> Feed:
    num_rows = len(scalars["loss"])
    for start, end in zip([0, *cuts], [*cuts, num_rows], strict=True):
        part = slice(start, end)
        feed.send(
            range(first + start, first + end),
            scalars={name: column[part] for name, column in scalars.items()},
            **{name: column[part] for name, column in metrics.items()},
        )
    return feed


def test_stored_events_of_a_run_are_those_of_its_replay_whatever_the_batches(url, monkeypatch):
    metrics, scalars = trouble()
    dice = random.Random(1)
    some = sorted(dice.sample(range(1, 300), 40))
    cuts = {"whole": [], "tens": list(range(10, 300, 10)), "dice": some}
    for run, at in cuts.items():
        send(url, run, metrics, scalars, at)
    expected = stored_events(url, "whole")
    assert len({event[1] for event in expected}) >= 6
    for run in cuts:
        assert stored_events(url, run) == expected
        assert replayed(url, run) == expected
    monkeypatch.setattr(stored_rows, "MOST_STEPS", 37)
    assert replayed(url, "dice") == expected


def test_a_replay_goes_through_every_attempt_as_ingest_did(url):
    metrics, scalars = trouble()
    feed = send(url, "resumed", metrics, scalars, [100])
    calm = course(150, seed=3)
    calm[0]["sigma"][90:, 0] *= 1.5
    more(feed, *calm, [40], first=200)  # back to step 200: a new attempt
    found = stored_events(url, "resumed")
    assert any(event[0] == 290 and event[1] == "sigma_jump" for event in found)
    assert replayed(url, "resumed") == found


def test_layers_that_come_and_go_steps_that_leap_and_thresholds_are_replayed_too(url):
    metrics, scalars = trouble()
    metrics["threshold"] = np.full_like(metrics["sigma"], 2.5)
    metrics["scale"] = np.minimum(1, 2.5 / metrics["sigma"])
    scalars["guard_vetoes"] = np.zeros(300, np.float32)
    scalars["guard_vetoes"][77] = 1
    names = ["=HYPERLINK(1)", "'quoted", 'a,b"c%2F?[q]']
    feed = Feed(url, "odd", names)
    for start in range(0, 300, 20):
        part = slice(start, start + 20)
        some = {name: column[part] for name, column in metrics.items()}
        if start == 60:
            some = {"sigma": some["sigma"]}
        steps = range(5 * start, 5 * (start + 20), 5)
        feed.send(steps, scalars={k: v[part] for k, v in scalars.items()}, **some)
    with ServiceClient(url) as service:
        assert layer_names(service, "odd") == names
    found = stored_events(url, "odd")
    assert {"breach", "guard", "nonfinite"} <= {event[1] for event in found}
    assert replayed(url, "odd") == found


def test_rules_of_the_run_and_its_planned_changes_count_in_a_replay(url):
    metrics, scalars = trouble()
    address = f"{url}/api/v1/runs/planned"
    feed = Feed(url, "planned", LAYERS)
    rules = {"rules": {"sigma_jump": {"limit": 0.4}, "grad_spike": {"on": False}}}
    httpx.put(f"{address}/rules", json=rules).raise_for_status()
    change = {"step": 240, "text": "other data", "quiet_steps": 100}
    httpx.post(f"{address}/annotations", json=change).raise_for_status()
    more(feed, metrics, scalars, [100, 130], first=1)
    found = stored_events(url, "planned")
    rules_seen = {event[1] for event in found}
    assert "sigma_growth" in rules_seen
    assert not {"sigma_jump", "grad_spike", "loss_divergence"} & rules_seen
    assert replayed(url, "planned") == found


def test_a_run_that_reported_nothing_has_no_events(url):
    httpx.post(f"{url}/api/v1/runs", json={"run": "empty"}).raise_for_status()
    assert replayed(url, "empty") == []


@pytest.fixture
def folder(tmp_path):
    """Yield a folder with a calm run and one that goes wrong, labels and rules."""
    save(tmp_path / "calm.npz", *course(200))
    save(tmp_path / "wrong.npz", *trouble())
    (tmp_path / "labels.csv").write_text(
        "id,healthy,cause,symptom\ncalm,1,,\nwrong,0,60,120\nelsewhere,0,1,2\n"
    )
    (tmp_path / "rules.toml").write_text(
        "[rules.sigma_jump]\nlimit = 0.4\n\n[rules.loss_divergence]\nfor_rows = 5\n"
    )
    return tmp_path


def test_other_rules_are_compared_and_scored_in_json(folder):
    done = snc("backtest", str(folder), "--rules", str(folder / "rules.toml"),
               "--labels", str(folder / "labels.csv"), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    calm, wrong = answer["items"]
    assert (calm["run"], calm["events"], calm["last_step"]) == ("calm", [], 200)
    by_rule = {}
    for each in wrong["events"]:
        by_rule.setdefault((each["before"] or each["after"])["rule"], []).append(each)
    (jump,) = [e for e in by_rule["sigma_jump"] if e["before"]["step"] == 81]
    assert (jump["change"], jump["after"]) == ("gone", None)
    assert jump["before"]["lead"] == 40  # symptom at row 120, which is step 121
    assert by_rule["loss_divergence"][0]["change"] == "moved"
    assert by_rule["loss_divergence"][0]["moved_steps"] == 2
    before, after = answer["score"]["before"], answer["score"]["after"]
    assert (before["symptoms"], before["recall"], before["median_lead"]) == (1, 1.0, 40.0)
    assert after["median_lead"] == 0.0  # the gradient's spike is left, at the symptom
    assert before["healthy_rows"] == 260


def test_without_other_rules_or_labels_it_lists_what_the_shipped_ones_say(folder):
    done = snc("backtest", str(folder / "wrong.npz"))
    assert done.returncode == 0, done.stderr
    assert "events by the rules in force" in done.stdout
    assert "sigma changed by a factor of 1.3" in done.stdout
    assert "Score" not in done.stdout
    assert "change" not in done.stdout.splitlines()[2]


def test_the_table_says_what_was_added_gone_or_moved_with_the_score_below(folder):
    done = snc("backtest", str(folder), "--rules", str(folder / "rules.toml"),
               "--labels", str(folder / "labels.csv"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "calm: 0 events by the rules in force, 0 by the others" in done.stdout
    assert " 2 later" in done.stdout
    assert "gone" in done.stdout
    assert "gradual faults: median lead" in done.stdout
    assert "40.00" in done.stdout


def once_its_incident_is_counted(url, run):
    """Return the run when the alert loop, which works after the batch is answered, has seen it."""
    deadline = time.monotonic() + 20.0
    while not (answer := httpx.get(f"{url}/api/v1/runs/{run}").json())["incidents"]:
        assert time.monotonic() < deadline, "no incident"
        time.sleep(0.05)
    return answer


def test_a_stored_run_is_compared_like_a_file_and_nothing_is_written(url, folder):
    send(url, "wrong", *trouble(), [150])
    before = once_its_incident_is_counted(url, "wrong")
    rules = str(folder / "rules.toml")
    of_run = snc("backtest", "wrong", "--url", url, "--rules", rules, "--json")
    of_file = snc("backtest", str(folder / "wrong.npz"), "--rules", rules, "--json")
    assert of_run.returncode == 0, of_run.stderr
    assert json.loads(of_run.stdout) == json.loads(of_file.stdout)
    assert httpx.get(f"{url}/api/v1/runs/wrong").json() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npz"], "cannot read .*missing.npz: No such file"),
        (["."], "must hold .npz files of runs, got none"),
        (["bad.npz"], "bad.npz must be an .npz file of arrays"),
        (["good.npz", "--rules", "nowhere.toml"], "cannot read .*nowhere.toml"),
        (["good.npz", "--rules", "unknown.toml"], "rules.sigma_leap is not known here"),
        (
            ["good.npz", "--rules", "negative.toml"],
            "rules.sigma_jump.limit must be a number from 0",
        ),
        (["good.npz", "--labels", "bad.csv"], "bad.csv: line 2: healthy must be 0 or 1"),
        (["good.npz", "--labels", "latin.csv"], "latin.csv must be CSV in UTF-8"),
        (["run", "--url", "http://127.0.0.1:9"], "no service answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_sentence(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    (tmp_path / "unknown.toml").write_text("[rules.sigma_leap]\nlimit = 1\n")
    (tmp_path / "negative.toml").write_text("[rules.sigma_jump]\nlimit = -1\n")
    (tmp_path / "bad.csv").write_text("id,healthy,cause,symptom\na,maybe,,\n")
    (tmp_path / "latin.csv").write_bytes(b"id,healthy,cause,symptom\n\xe4,1,,\n")
    if arguments != ["."]:
        save(tmp_path / "good.npz", *course(20))
    else:
        for name in ("bad.npz", "bad.csv", "latin.csv"):
            (tmp_path / name).unlink()
    assert main(["backtest", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"snc: .*{message}.*\n", said.err)


def test_a_run_that_is_not_there_is_named(url, capsys):
    assert main(["backtest", "nobody", "--url", url]) == 1
    assert "'nobody'" in capsys.readouterr().err
