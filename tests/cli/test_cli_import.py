"""``snc import`` in real processes against a real service."""

import json
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from recorded_files import (
    EVENTS,
    WANDB,
    event,
    mlflow_database,
    wandb_end,
    wandb_rows,
    wandb_start,
    write_events,
    write_wandb,
)
from test_cli import environment, serving

from snc_service.cli import main
from snc_service.cli.commands.imports import delivery
from snc_service.cli.failure import RefusedByService


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("import") / "snc.db") as url:
        yield url


@pytest.fixture
def imported(url, capsys):
    """Run ``snc import --json`` in this process; return its items and failures."""

    def run(*arguments) -> dict:
        status = main(["import", "--url", url, "--json", *map(str, arguments)])
        found = json.loads(capsys.readouterr().out)
        assert status == bool(found["failed"])
        return found

    return run


def get(url: str, path: str, **query):
    answer = httpx.get(f"{url}/api/v1/{path}", params=query)
    answer.raise_for_status()
    return answer.json()


def export(url: str, run: str) -> list[str]:
    answer = httpx.get(f"{url}/api/v1/runs/{run}/export", params={"format": "csv"})
    answer.raise_for_status()
    return sorted(line.partition(",")[2] for line in answer.text.splitlines())


def test_a_wandb_run_becomes_a_run_and_a_second_import_adds_nothing(url, imported):
    (item,) = imported(WANDB)["items"]
    assert (item["run"], item["state"], item["sent_values"]) == ("wandb-demo-abcd1234", "new", 360)
    assert item["metrics"] == {"sigma": 2, "grad_norm": 1}
    known = {"loss": "train/loss", "lr": "train/learning_rate", "step_seconds": "step_seconds"}
    assert item["scalars"] == known
    run = get(url, "runs/wandb-demo-abcd1234")
    assert (run["name"], run["project"], run["state"]) == ("first", "demo", "finished")
    assert (run["last_step"], run["layers"], run["tags"]) == (60, 2, ["base"])
    assert run["config"]["lr"] == 0.001
    history = get(url, "runs/wandb-demo-abcd1234/layers/fc1.weight/history", metric="sigma")
    assert history["mean"] == [1 + step / 8 for step in range(1, 61)]
    before = export(url, run["run"])
    (item,) = imported(WANDB)["items"]
    assert (item["state"], item["sent_values"]) == ("there", 0)
    again = get(url, "runs/wandb-demo-abcd1234")
    assert (again["version"], again["updated_at"]) == (run["version"], run["updated_at"])
    assert export(url, run["run"]) == before


def test_the_three_tools_give_the_same_histories(url, imported, tmp_path):
    found = imported(EVENTS, mlflow_database(tmp_path / "mlflow.db"))["items"]
    for item in found:
        history = get(url, f"runs/{item['run']}/layers/fc1.weight/history", metric="sigma")
        assert history["mean"] == [1 + step / 8 for step in range(1, 31)]
        loss = get(url, f"runs/{item['run']}/scalars/loss/history")
        assert loss["mean"][:2] == [2.0, 1.0]
        assert loss["mean"][19] is None  # NaN


def test_a_run_has_the_times_of_its_source_and_reports_of_the_import(url, imported):
    """The event file has step s at 10^9 + s seconds, to step 30."""
    (item,) = imported(EVENTS)["items"]
    run = get(url, f"runs/{item['run']}")
    assert (run["started_at"], run["duration"]) == ("2001-09-09T01:46:40.000Z", 30.0)
    assert run["created_at"] > "2001-09-10"
    seconds = get(url, f"runs/{item['run']}/scalars/step_seconds/history")
    assert seconds["mean"][:28] == [1.0] * 28
    for query, found in (("duration>29", True), ("duration>31", False)):
        items = get(url, "runs", q=f"run:{item['run']} {query}")["items"]
        assert bool(items) == found
    first = get(url, "runs", q="run:tensorboard*", sort="-duration")["items"][0]
    assert first["run"] == item["run"]


def test_the_duration_of_a_source_without_times_is_unknown_and_not_that_of_the_import(
    url, imported, tmp_path
):
    (tmp_path / "timeless.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    (item,) = imported(tmp_path / "timeless.csv")["items"]
    assert get(url, f"runs/{item['run']}")["duration"] is None
    for query in ("duration>=0", "duration<1d"):
        assert get(url, "runs", q=f"run:{item['run']} {query}")["items"] == []


def test_an_interrupted_import_is_completed_and_stores_nothing_twice(
    url, imported, tmp_path, monkeypatch
):
    """Forty scalars need two batches of the same steps; the second of four batches breaks off."""
    table = tmp_path / "many.csv"
    names = [f"s{number}" for number in range(40)]
    rows = [f"{step},{','.join(str(step + n) for n in range(40))}" for step in range(1_500)]
    table.write_text("\n".join([f"step,{','.join(names)}", *rows]) + "\n")
    sent = delivery._sent
    calls = []

    def breaks(service, method, *path, **more):
        calls.append(path)
        if len(calls) == 3:
            raise RefusedByService("broken off (500)", 500)
        sent(service, method, *path, **more)

    monkeypatch.setattr(delivery, "_sent", breaks)
    assert main(["import", "--url", url, str(table)]) == 1
    monkeypatch.undo()
    (item,) = imported(table)["items"]
    assert (item["state"], item["sent_values"]) == ("new", 60_000)
    run = get(url, f"runs/{item['run']}")
    assert (run["state"], run["attempt"], run["last_step"]) == ("finished", 0, 1_499)
    lines = export(url, item["run"])
    assert len(lines) == len(set(lines)) == 60_001
    assert not [
        e for e in get(url, f"runs/{item['run']}/events")["items"] if e["rule"] == "rewound"
    ]


def test_a_log_that_grew_is_continued(url, imported, tmp_path):
    rows = [(step, {"loss": step / 4, "sigma/fc1.weight": 1.0}) for step in range(20)]
    path = tmp_path / "run-grows.wandb"
    write_wandb(path, [wandb_start("grows"), *wandb_rows(rows[:12])])
    (item,) = imported(path)["items"]
    assert item["notes"] == ["the run has no end: it was killed, or is still going on"]
    write_wandb(path, [wandb_start("grows"), *wandb_rows(rows), wandb_end(1)])
    (item,) = imported(path)["items"]
    assert (item["state"], item["sent_values"]) == ("continued", 16)
    run = get(url, "runs/wandb-demo-grows")
    assert (run["state"], run["last_step"], run["attempt"]) == ("failed", 19, 0)
    loss = get(url, "runs/wandb-demo-grows/scalars/loss/history")
    assert loss["steps"] == list(range(20))
    (item,) = imported(path)["items"]
    assert item["state"] == "kept"  # the first import is what the run's mark is of
    (item,) = imported("--map", "loss=other", path)["items"]
    assert item["state"] == "kept"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_an_export_of_a_run_comes_back_as_it_was(url, imported, tmp_path, form):
    """Two attempts, values that were not measured or are not finite, names with apostrophes."""
    layers = ["fc1.weight", "=cmd|' /C calc'!A0", "a,b", "'quoted"]
    rng = np.random.default_rng(1)
    run = f"original-{form}"
    httpx.post(f"{url}/api/v1/runs", json={"run": run}).raise_for_status()
    for seq, (first, scalar) in enumerate(((0, "loss"), (40, "loss"), (30, "train_loss"))):
        sigma = rng.random((40, 4)).astype(np.float32).tolist()
        sigma[3][1] = None
        body = {
            "writer": "w", "seq": seq, "steps": list(range(first, first + 40)), "layers": layers,
            "metrics": {"sigma": sigma, "threshold": [[2.0] * 4] * 40},
            "scalars": {scalar: [0.5] * 39 + [None]},
        }  # fmt: skip
        httpx.post(f"{url}/api/v1/runs/{run}/batches", json=body).raise_for_status()
    assert get(url, f"runs/{run}")["attempt"] == 1
    file = tmp_path / f"run.{form}"
    assert main(["export", run, "--url", url, "-o", str(file)]) == 0
    assert main(["import", "--url", url, "--project", "back", str(file)]) == 0
    (found,) = get(url, "runs", project="back", q=f"name:{run}")["items"]
    assert export(url, found["run"]) == export(url, run)
    assert found["attempt"] == 1


def test_rules_judge_an_imported_run_as_backtest_judges_its_file(url, imported, tmp_path, capsys):
    others = {f"x{number}": 1.0 for number in range(60)}  # more than one batch holds
    rows = [
        (step, {"loss": 1.0 if step < 300 else 50.0 * step, "sigma/fc1.weight": 1 + 0.001 * step,
                "sigma/fc2.weight": 2.0 if step < 310 else 40.0, **others})
        for step in range(1, 400)
    ]  # fmt: skip
    path = tmp_path / "run-bad.wandb"
    write_wandb(path, [wandb_start("bad"), *wandb_rows(rows), wandb_end()])
    imported(path)
    own = ("run_started", "run_finished")
    events = get(url, "runs/wandb-demo-bad/events")["items"]
    live = sorted((e["step"], e["rule"], e["layer"]) for e in events if e["rule"] not in own)
    assert live
    assert main(["backtest", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["items"]
    after = [change["after"] for change in found["events"]]
    assert sorted((e["step"], e["rule"], e["layer"]) for e in after) == live


def test_backtest_maps_names_and_says_what_it_leaves_out(tmp_path, capsys):
    rows = [(step, {"nll": float("nan") if step == 7 else 1.0, "note": "x"}) for step in range(9)]
    path = write_wandb(tmp_path / "run-a.wandb", [wandb_start("a"), *wandb_rows(rows), wandb_end()])
    assert main(["backtest", str(tmp_path), "--map", "nll=loss", "--json"]) == 0
    captured = capsys.readouterr()
    (found,) = json.loads(captured.out)["items"]
    assert [(c["after"]["step"], c["after"]["rule"]) for c in found["events"]] == [(7, "nonfinite")]
    assert "left out 9 values that are no numbers: note" in captured.err
    assert main(["backtest", str(path), "--json"]) == 0  # unmapped it is no loss
    assert json.loads(capsys.readouterr().out)["items"][0]["events"] == []


def test_a_dry_run_sends_nothing_and_shows_the_names(tmp_path):
    command = [sys.executable, "-m", "snc_service.cli", "import", "--dry-run", str(WANDB)]
    done = subprocess.run(
        [*command, "--url", "http://127.0.0.1:9"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "sigma of 2, grad_norm of 1" in done.stdout
    assert "loss (train/loss), lr (train/learning_rate)" in done.stdout


def test_a_run_of_a_job_is_never_written_to(url, tmp_path, capsys):
    httpx.post(f"{url}/api/v1/runs", json={"run": "wandb-demo-live"}).raise_for_status()
    rows = wandb_rows([(1, {"loss": 1.0})])
    path = write_wandb(tmp_path / "run-live.wandb", [wandb_start("live"), *rows, wandb_end()])
    assert main(["import", "--url", url, str(path)]) == 1
    assert "wandb-demo-live must be free or made by an import" in capsys.readouterr().err


def test_a_run_that_ended_badly_is_told_to_nobody_twice(url, imported, tmp_path):
    """The state of a repeated import does not change: its event of the end is there once."""
    rows = wandb_rows([(1, {"loss": 1.0})])
    path = write_wandb(tmp_path / "run-once.wandb", [wandb_start("once"), *rows, wandb_end(1)])
    for _ in range(2):
        imported(path)
    events = get(url, "runs/wandb-demo-once/events")["items"]
    assert [event["rule"] for event in events] == ["run_finished", "run_started"]


def test_one_broken_file_does_not_keep_the_others_from_it(imported, tmp_path):
    write_events(tmp_path / "good" / "events.out.tfevents.5.h", [event(1, loss=1.0)])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    found = imported(tmp_path, "--tag", "old", "--project", "Gathered")
    assert [item["scalars"] for item in found["items"]] == [{"loss": "loss"}]
    (failure,) = found["failed"]
    assert failure["source"] == "bad.csv"
    assert failure["error"].startswith("must have a column of steps ")  # the file is named once
    assert "name it with --step" in failure["error"]


def test_a_busy_service_is_asked_again_as_late_as_it_says(url, imported, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(delivery.time, "sleep", waits.append)
    send, answers = delivery.ServiceClient.send, iter((429, 503))

    def busy(self, *path, **more):
        status = next(answers, None)
        if status is not None:
            raise RefusedByService("busy", status, 7)
        return send(self, *path, **more)

    monkeypatch.setattr(delivery.ServiceClient, "send", busy)
    path = write_events(tmp_path / "e" / "events.out.tfevents.6.h", [event(1, loss=1.0)])
    assert imported(path.parent)["items"][0]["sent_values"] == 1
    assert waits == [7, 7]


def test_a_terminal_shows_how_much_is_sent(url, tmp_path, monkeypatch, capsys):
    path = write_events(tmp_path / "shown" / "events.out.tfevents.7.h", [event(1, loss=1.0)])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["import", "--url", url, str(path)]) == 0
    said = capsys.readouterr().err
    assert "tensorboard-shown" in said
    assert "1/1" in said


def test_one_name_is_not_given_to_several_runs(url, tmp_path, capsys):
    table = tmp_path / "two.csv"
    table.write_text("run,step,loss\na,1,1\nb,1,2\n")
    assert main(["import", "--url", url, "--name", "one", str(table)]) == 1
    assert "--name must be for one run, got several in two.csv" in capsys.readouterr().err
    assert get(url, "runs", q="name:one")["items"] == []


def test_wide_and_long_tables_are_read_alike(url, imported, tmp_path):
    (tmp_path / "wide.csv").write_text(
        "Step,train/loss,sigma/fc1.weight,fc1.weight/grad_norm,comment\n"
        "1,0.5,2.0,,hi\n2,0.25,,3.0,\n"
    )
    (tmp_path / "long.csv").write_text(
        "step,metric,layer,value\n1,loss,,0.5\n1,sigma,fc1.weight,2.0\n"
        "2,loss,,0.25\n2,grad_norm,fc1.weight,3.0\n"
    )
    wide, long_ = sorted(imported(tmp_path)["items"], key=lambda item: item["source"], reverse=True)
    assert wide["metrics"] == long_["metrics"] == {"sigma": 1, "grad_norm": 1}
    assert export(url, wide["run"]) == export(url, long_["run"])
    assert wide["notes"] == ["left out 1 cells that are no numbers: comment"]
