"""Commands, from REST through acknowledgements to the user's function at a step boundary."""

import functools
import json
import time

import httpx
import pytest
import torch
from ledger import told
from sending import batches_posted, put, sender

from snc_client import SNCallback
from snc_service.wire import Command, WireError


def model():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4)


def ask(url, run, action, reason=""):
    body = {"action": action, "reason": reason}
    httpx.post(f"{url}/api/v1/runs/{run}/commands", json=body).raise_for_status()


def commands_of(url, run):
    return httpx.get(f"{url}/api/v1/runs/{run}/commands").json()["items"]


def step_until(callback, condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        callback.step(loss=1.0)
        time.sleep(0.02)


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Stop(Exception):
    """How this user leaves the loop."""


def test_a_command_reaches_the_users_function_once_and_the_service_knows(service_url):
    seen = []
    with SNCallback(model(), url=service_url, on_command=seen.append) as callback:
        step_until(callback, lambda: callback.sent_values)
        ask(service_url, callback.run, "checkpoint", "before the move")
        step_until(callback, lambda: seen)
        assert seen == [Command(1, "checkpoint", "before the move")]
        step_until(callback, lambda: commands_of(service_url, callback.run)[0]["seen_at"])
        step_until(callback, lambda: callback.latest.step > 5)
        assert len(seen) == 1


def test_what_the_users_function_raises_leaves_the_loop(service_url):
    def obey(command):
        raise Stop(command.reason)

    optimized = model()
    optimizer = torch.optim.SGD(optimized.parameters(), lr=0.0)
    callback = SNCallback(optimized, optimizer=optimizer, url=service_url, on_command=obey)

    def train():
        while True:
            optimized(torch.ones(1, 6)).sum().backward()
            optimizer.step()
            time.sleep(0.02)
            if callback.sent_values and not commands_of(service_url, callback.run):
                ask(service_url, callback.run, "stop", "enough")

    with pytest.raises(Stop, match="enough"):
        train()
    callback.close()
    assert callback.errors == 0


def test_a_paused_job_hears_that_it_may_go_on(service_url):
    told_to = []

    def obey(command):
        told_to.append(command.action)
        while command.action == "pause" and "resume" not in told_to:
            told_to.extend(each.action for each in callback.take_commands())
            if commands_of(service_url, callback.run)[0]["action"] == "pause":
                ask(service_url, callback.run, "resume")
            time.sleep(0.05)

    with SNCallback(model(), url=service_url, on_command=obey) as callback:
        step_until(callback, lambda: callback.sent_values)
        ask(service_url, callback.run, "pause")
        step_until(callback, lambda: told_to)
        assert told_to == ["pause", "resume"]


def test_without_a_function_a_command_is_said_and_training_goes_on(service_url, caplog):
    with SNCallback(model(), url=service_url) as callback:
        step_until(callback, lambda: callback.sent_values)
        ask(service_url, callback.run, "stop")
        step_until(callback, lambda: "stop was asked for" in caplog.text)
        assert "on_command= is not set" in caplog.text


def test_on_command_must_be_a_function():
    with pytest.raises(ValueError, match="on_command must be a function"):
        SNCallback(model(), on_command="stop")


def test_without_a_service_there_are_no_commands():
    with SNCallback(model(), on_command=print) as callback:
        callback.step()
        assert callback.take_commands() == []


# The sender alone, against a service that misbehaves


def with_commands(ledger, commands):
    """Let every batch that is stored be acknowledged with ``commands``."""

    def after(seen):
        if not seen.path.endswith("/batches") or not (ledger.runs and ledger.tables):
            return None
        return told(200, accepted=6, duplicate=False, policy_version=0, commands=commands)

    return after


def test_a_command_that_comes_again_is_taken_once_and_named_in_the_header(ledger):
    ledger.after = with_commands(ledger, [{"id": 3, "action": "pause", "reason": "", "new": 1},
                                  {"id": 5, "action": "resume"}])  # fmt: skip
    out = sender(ledger.url, run="r")
    put(out, 1)
    ledger.until(lambda: ledger.num_batches == 1)
    wait_for(lambda: out._delivery.inbox._commands)
    put(out, 2)
    ledger.until(lambda: ledger.num_batches == 2)
    assert out.take_commands() == [Command(3, "pause"), Command(5, "resume")]
    assert out.take_commands() == []
    put(out, 3)
    ledger.until(lambda: ledger.num_batches == 3)
    out.close()
    assert out.take_commands() == []
    headers = [seen.headers["snc-commands-seen"] for seen in batches_posted(ledger)]
    assert headers == ["0", "0", "0", "5"]  # the first one lacked its layer table


@pytest.mark.parametrize(
    "commands",
    [
        "stop",
        {"id": 1},
        [7],
        [{"id": 0, "action": "stop"}],
        [{"id": True, "action": "stop"}],
        [{"id": 2**60, "action": "stop"}],
        [{"id": 1, "action": "explode"}],
        [{"id": 1, "action": "stop", "reason": "a\nb"}],
        [{"id": 1, "action": "stop", "reason": 7}],
        [{"id": 1, "action": ["stop"]}],
        [{"id": i + 1, "action": "stop"} for i in range(65)],
    ],
)
def test_commands_that_are_none_disturb_nothing(ledger, commands, caplog):
    ledger.after = with_commands(ledger, commands)
    out = sender(ledger.url, run="r")
    put(out, 1)
    ledger.until(lambda: ledger.num_batches == 1)
    out.close()
    assert out.take_commands() == []
    assert out.sent_values == 6
    assert "commands that are none" in caplog.text
    with pytest.raises(WireError):
        Command.parse_all(commands)


def test_a_run_that_was_deleted_counts_its_commands_anew(ledger):
    ledger.after = with_commands(ledger, [{"id": 9, "action": "checkpoint"}])
    out = sender(ledger.url, run="r")
    put(out, 1)
    wait_for(lambda: out.take_commands())
    ledger.runs.clear()
    ledger.after = with_commands(ledger, [{"id": 1, "action": "stop"}])
    put(out, 2)
    wait_for(lambda: [each.id for each in out.take_commands()] == [1])
    out.close()


def test_a_command_survives_the_wire_letter_by_letter():
    command = Command(7, "checkpoint", "<b>\u202e'; --")
    assert Command.parse(json.loads(json.dumps(command.as_dict()))) == command


def test_the_jobs_own_policy_comes_back_into_force_when_the_service_sends_it_again(service_url):
    weights = model()

    def policy(threshold):
        entry = {"pattern": "*", "threshold": threshold, "action": "rescale"}
        return {"entries": [entry]}

    with SNCallback(weights, threshold=1.0, url=service_url) as callback:
        step_until(callback, lambda: callback.sent_values)
        address = f"{service_url}/api/v1/runs/{callback.run}/policy"
        for limit in (1.0, 8.0, 1.0, 0.5, 1.0):
            httpx.put(address, json=policy(limit)).raise_for_status()
            in_force = functools.partial(
                lambda x: callback.latest["weight"]["threshold"] == x, limit
            )
            step_until(callback, in_force)
        with torch.no_grad():
            weights.weight.mul_(100.0)
        callback.step(loss=1.0)
        assert float(torch.linalg.matrix_norm(weights.weight.detach(), 2)) <= 1.001
