"""``snc suggest`` from runs of a real service, down to a job that obeys what was suggested."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch
from backtest_cases import LAYERS, course
from feed import Feed
from test_cli import serving, snc
from test_cli_backtest import send
from torch import nn

from snc_client import SNCallback
from snc_service.cli import main
from snc_service.wire import Policy, PolicyEntry


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("suggest") / "snc.db") as url:
        yield url


def healthy(url: str, run: str, seed: int, jump: float = 1.0):
    metrics, scalars = course(200, seed)
    metrics["sigma"][50::20, 2] *= jump
    send(url, run, metrics, scalars, [100])
    return metrics["sigma"].max(axis=0)


def test_thresholds_lie_above_every_healthy_run_and_snc_policy_set_takes_them(url, tmp_path):
    largest = np.maximum(healthy(url, "a", 0), healthy(url, "b", 1))
    policy = tmp_path / "policy.json"
    done = snc("suggest", "a", "b", "--url", url, "-o", str(policy))
    assert done.returncode == 0, done.stderr
    assert "1.5 times the largest value in a, b (400 rows)" in done.stdout
    assert "none needs to be raised" in done.stdout
    entries = Policy.parse(json.loads(policy.read_text()))
    for layer, sigma in zip(LAYERS, largest, strict=True):
        assert 1.5 * sigma <= entries.entry(layer).threshold <= 1.5 * 1.1 * 1.3 * sigma
    assert {entry.pattern for entry in entries.entries} == {"blocks.*.fc.weight", "head.weight"}
    put = snc("policy", "set", "--project", "next", "--url", url, "--file", str(policy))
    assert put.returncode == 0, put.stderr
    shown = snc("policy", "get", "--project", "next", "--url", url, "--json")
    assert json.loads(shown.stdout)["policy"] == entries.as_dict()


def test_a_recipe_comes_first_and_runs_give_the_thresholds_of_the_other_layers(url, tmp_path):
    healthy(url, "begun", 0)
    start = tmp_path / "start.toml"
    start.write_text(
        '[[entries]]\npattern = "blocks.0.*"\nthreshold = "2x init"\naction = "cap"\n'
        '[[entries]]\npattern = "nowhere.*"\nthreshold = 1\n'
    )
    done = snc("suggest", "begun", "--url", url, "--recipe", str(start), "--json")
    assert done.returncode == 0, done.stderr
    assert f"nowhere.* of {start} matches no layer of the runs: left out" in done.stderr
    policy = Policy.parse({"entries": json.loads(done.stdout)["entries"]})
    assert policy.entries[0] == PolicyEntry("blocks.0.*", "2x init", "cap")
    for layer in LAYERS:
        of_the_recipe = layer.startswith("blocks.0.")
        assert (policy.entry(layer) is policy.entries[0]) is of_the_recipe
        assert policy.entry(layer).action == ("cap" if of_the_recipe else "observe")


def test_a_recipe_for_all_layers_leaves_nothing_to_suggest(url):
    healthy(url, "held", 0)
    done = snc("suggest", "held", "--url", url, "--recipe", "robust", "--json")
    assert done.returncode == 0, done.stderr
    assert [entry["pattern"] for entry in json.loads(done.stdout)["entries"]] == ["*"]


def test_rule_limits_are_raised_to_what_healthy_runs_do_and_snc_backtest_takes_them(url, tmp_path):
    healthy(url, "shaken", 0, jump=1.2)
    rules = tmp_path / "rules.toml"
    done = snc("suggest", "shaken", "--url", url, "--rules-output", str(rules))
    assert done.returncode == 0, done.stderr
    assert "sigma_jump" in done.stdout
    assert "shaken had sigma_jump at step 51: is it a run that went well?" in done.stderr
    assert rules.read_text().startswith("# 1.5 times the largest value in shaken (200 rows)")
    back = snc("backtest", "shaken", "--url", url, "--rules", str(rules), "--json")
    (item,) = json.loads(back.stdout)["items"]
    assert {event["change"] for event in item["events"]} == {"gone"}
    assert len(item["events"]) >= 1


def test_a_job_is_held_by_what_was_suggested_from_a_real_training(url, tmp_path):
    torch.manual_seed(0)
    train(url, "good", steps=40, lr=0.01)
    policy = tmp_path / "policy.json"
    done = snc("suggest", "good", "--url", url, "--margin", "1.2", "--action", "rescale",
               "-o", str(policy), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["margin"], answer["runs"], answer["rows"]) == (1.2, ["good"], 41)
    assert {"entries": answer["entries"]} == json.loads(policy.read_text())
    with train(url, "bad", steps=40, lr=2.0, policy=answer_policy(policy)) as callback:
        thresholds = [reading["threshold"] for reading in callback.latest.values()]
    assert thresholds == pytest.approx([e["threshold"] for e in answer["entries"]] * 2, rel=1e-5)
    for layer in callback.layers.layers:
        norm = float(torch.linalg.matrix_norm(layer.weight().double(), 2))
        assert norm <= callback.latest[layer.name]["threshold"] * (1 + 1e-3)


def answer_policy(path) -> dict:
    return json.loads(path.read_text())


def train(url: str, run: str, steps: int, lr: float, **keywords) -> SNCallback:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    data = torch.Generator().manual_seed(1)
    with SNCallback(model, url=url, run=run, **keywords) as callback:
        for _ in range(steps):
            x = torch.randn(32, 8, generator=data)
            loss = (model(x) - 3 * x.roll(1, 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
    return callback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["silent"], "silent must have reported sigma, got none"),
        (["nobody"], "'nobody'"),
        (["fine", "--margin", "0.5"], "--margin must be a number from 1 to 1000, got 0.5"),
        (["fine", "--margin", "nan"], "--margin must be a number"),
        (["fine", "-o", "nowhere/policy.json"], "cannot write nowhere/policy.json"),
    ],
)
def test_what_cannot_be_suggested_is_refused_with_a_sentence(
    url, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "silent":
        Feed(url, "silent", LAYERS)
    elif arguments[0] == "fine":
        httpx.delete(f"{url}/api/v1/runs/fine")
        healthy(url, "fine", 0)
    assert main(["suggest", *arguments, "--url", url]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
