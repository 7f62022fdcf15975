"""How a training ends, seen at a real service: the state of the run, and its last row."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest
import torch
from small_loops import grow, norms, small_model, train_step
from torch import nn

from snc_client import SNCallback
from snc_client.callback import ending

JOB = """
import sys, torch
from torch import nn
from snc_client import SNCallback
url, how = sys.argv[1:]
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def train():
    callback = SNCallback(model, url=url, run="job", threshold=100.0, action="stop")
    for step in range(1, 21):
        loss = model(torch.randn(4, 20)).square().mean()
        if step == 20 and how == "breach":
            model[0].weight.data.mul_(1e6)
        elif step == 20:
            loss = loss * float("nan")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        callback.step(loss=loss)
    if how == "raise":
        raise RuntimeError("loss is not finite")
    if how == "exit 3":
        sys.exit(3)
    if how == "exit 0":
        sys.exit(0)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "breach":
        optimizer.step()
        callback.step()  # raises
    return callback if how == "end" else None

kept = train()
"""
ENDS = {
    "raise": "failed",
    "exit 3": "failed",
    "interrupt": "failed",
    "breach": "failed",
    "exit 0": "finished",
    "end": "finished",
    "collected": "finished",
}


def run_at(url: str, run: str) -> dict:
    return httpx.get(f"{url}/api/v1/runs/{run}").raise_for_status().json()


def events(url: str, run: str) -> set[str]:
    items = httpx.get(f"{url}/api/v1/runs/{run}/events").raise_for_status().json()["items"]
    return {item["rule"] for item in items}


def until_ended(url: str, run: str, seconds: float = 10.0) -> str:
    deadline = time.monotonic() + seconds
    while (state := run_at(url, run)["state"]) == "active" and time.monotonic() < deadline:
        time.sleep(0.05)
    return state


@pytest.mark.parametrize("how", ENDS)
def test_the_last_row_is_stored_and_the_run_ends_as_the_training_did(how, service_url):
    command = [sys.executable, "-c", JOB, service_url, how]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False, timeout=120)
    found = run_at(service_url, "job")
    assert (found["state"], found["last_step"]) == (ENDS[how], 21 if how == "breach" else 20)
    assert ("breach" if how == "breach" else "nonfinite") in events(service_url, "job")


def leave_by(error: BaseException, callback: SNCallback) -> None:
    with callback:
        callback.step(loss=1.5)
        raise error


def test_a_with_block_ends_failed_by_an_exception_and_finished_by_a_clean_exit(service_url):
    for run, error, state in (
        ("left", SystemExit(0), "finished"),
        ("status", SystemExit(2), "failed"),
        ("raised", ValueError("mine"), "failed"),
        ("interrupted", KeyboardInterrupt(), "failed"),
    ):
        with pytest.raises(type(error)):
            leave_by(error, SNCallback(small_model(), url=service_url, run=run))
        found = run_at(service_url, run)
        assert (found["state"], found["last_step"]) == (state, 1), run


def test_close_says_that_the_training_failed(service_url):
    callback = SNCallback(small_model(), url=service_url, run="told")
    callback.step()
    callback.close(failed=True)
    callback.close()
    assert run_at(service_url, "told")["state"] == "failed"


def test_a_callback_that_nobody_keeps_delivers_its_last_row(service_url):
    def train() -> None:
        callback = SNCallback(small_model(), url=service_url, run="dropped")
        for step in range(5):
            callback.step(loss=float(step))

    train()
    gc.collect()
    assert until_ended(service_url, "dropped") == "finished"
    assert run_at(service_url, "dropped")["last_step"] == 5


def test_a_cell_that_fails_is_told_and_the_next_one_resumes_the_run(service_url):
    model = small_model()
    callback = SNCallback(model, url=service_url, run="cells", threshold=0.5)
    for step in range(3):
        callback.step(loss=float(step))
    ending._cell_has_run(SimpleNamespace(error_in_exec=None))
    ending._cell_has_run(SimpleNamespace(error_in_exec=KeyboardInterrupt()))
    assert until_ended(service_url, "cells") == "failed"
    assert run_at(service_url, "cells")["last_step"] == 3
    grow(model, 3)
    callback.step(loss=3.0)
    assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)
    callback.step(loss=4.0)
    callback.close()
    found = run_at(service_url, "cells")
    assert (found["state"], found["last_step"], found["attempt"]) == ("finished", 5, 0)


def test_the_same_cell_again_with_a_new_model_keeps_the_run_open(service_url, caplog):
    def cell(steps: int) -> SNCallback:
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        callback = SNCallback(model, optimizer=optimizer, url=service_url, run="again")
        for _ in range(steps):
            train_step(model, optimizer)
        return callback

    held = cell(7)
    held = cell(9)
    gc.collect()
    assert "reports layers of the same names as run again" in caplog.text
    held.close()
    found = run_at(service_url, "again")
    assert (found["state"], found["last_step"]) == ("finished", 9)
    first = httpx.get(
        f"{service_url}/api/v1/runs/again/layers/0.weight/history", params={"attempt": 0}
    )
    assert first.raise_for_status().json()["steps"][-1] == 7
    assert held.dropped_values == 0


def test_two_models_with_equal_names_in_one_run_are_told_apart_by_prefixes(service_url, caplog):
    generator, critic = small_model(), small_model()
    grow(critic, 6)
    optimizers = [torch.optim.SGD(x.parameters(), lr=1e-3) for x in (critic, generator)]
    models = {"generator": generator, "critic": critic}
    with SNCallback(models, optimizer=optimizers, url=service_url, run="gan") as callback:
        for _ in range(5):
            train_step(critic, optimizers[0])
            train_step(generator, optimizers[1])
    assert callback.errors == 0
    assert not caplog.records
    items = httpx.get(f"{service_url}/api/v1/runs/gan/layers").json()["items"]
    sigma = {item["layer"]: item["sigma"] for item in items}
    assert set(sigma) == {
        f"{prefix}.{layer}.weight" for prefix in ("generator", "critic") for layer in (0, 2)
    }
    assert sigma["critic.0.weight"] > 4 * sigma["generator.0.weight"]


@pytest.mark.parametrize("models", [{}, {"": nn.Linear(2, 2)}, {"a": 3}, {1: nn.Linear(2, 2)}])
def test_a_mapping_that_names_no_models_is_refused(models):
    with pytest.raises(ValueError, match="model must"):
        SNCallback(models)


def test_a_job_resumed_from_an_earlier_state_counts_attempts_as_the_service_does(service_url):
    model = small_model()
    with SNCallback(model, url=service_url, run="resumed") as first:
        first.step()
        state = first.state_dict()
        for _ in range(4):
            first.step()
    with SNCallback(small_model(), url=service_url, run="resumed") as second:
        second.load_state_dict(state)
        second.step()
    assert second.attempt == run_at(service_url, "resumed")["attempt"] == 1
