"""Commands: sent by an operator, carried by acknowledgements until the job says it has them."""

import pytest
from api_cases import (
    RUN,
    Clock,
    assert_problem,
    batch_of,
    register,
    serving_app,
    settings_in,
    table_of,
)

from snc_service.store.types.records import MAX_WAITING_COMMANDS
from snc_service.wire import COMMANDS_SEEN_HEADER

TABLE = table_of("a")
COMMANDS = f"{RUN}/commands"


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path), clock=Clock()) as opened:
        register(opened, TABLE)
        yield opened


def acknowledged(api, seq, seen=None):
    headers = {} if seen is None else {COMMANDS_SEEN_HEADER: str(seen)}
    told = api.send(batch_of(TABLE, seq, (seq,), sigma=[[1.0]]), **headers)
    assert told.status_code == 200, told.text
    return told.json().get("commands")


def test_a_command_rides_in_every_acknowledgement_until_the_job_has_it(api):
    assert acknowledged(api, 0) is None
    told = api.post(COMMANDS, json={"action": "checkpoint", "reason": "maintenance"})
    assert told.status_code == 201
    sent = {"id": 1, "action": "checkpoint", "reason": "maintenance"}
    assert told.json() == sent | {
        "author": "anonymous", "at": "2025-11-22T08:26:40.000Z", "seen_at": None,
    }  # fmt: skip
    assert acknowledged(api, 1) == [sent]
    assert acknowledged(api, 2, seen=0) == [sent]
    api.post(COMMANDS, json={"action": "stop"})
    assert acknowledged(api, 3, seen=1) == [{"id": 2, "action": "stop", "reason": ""}]
    assert acknowledged(api, 4, seen=2) is None
    assert [each["seen_at"] is None for each in api.get(COMMANDS).json()["items"]] == [False] * 2


def test_a_command_reaches_a_job_that_speaks_json(api):
    api.post(COMMANDS, json={"action": "pause"})
    body = {"writer": "w", "seq": 0, "steps": [0], "scalars": {"loss": [1]}}
    told = api.post(f"{RUN}/batches", json=body).json()
    assert told["commands"] == [{"id": 1, "action": "pause", "reason": ""}]
    told = api.post(f"{RUN}/batches", json=body, headers={COMMANDS_SEEN_HEADER: "1"}).json()
    assert told["duplicate"]
    assert "commands" not in told


@pytest.mark.parametrize("seen", ["-1", "x", "1.5", "9" * 30, ""])
def test_a_number_of_a_command_that_is_none_is_422(api, seen):
    told = api.send(batch_of(TABLE, sigma=[[1.0]]), **{COMMANDS_SEEN_HEADER: seen})
    assert_problem(told, 422, "invalid")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "action"),
        ({"action": "explode"}, "action"),
        ({"action": ["stop"]}, "action"),
        ({"action": "stop", "reason": "a\nb"}, "reason"),
        ({"action": "stop", "reason": "x" * 257}, "reason"),
        ({"action": "stop", "reason": None}, "reason"),
        ({"action": "stop", "when": "now"}, "when"),
    ],
)
def test_a_command_that_is_none_is_422_and_leaves_nothing(api, body, field):
    assert_problem(api.post(COMMANDS, json=body), 422, "invalid", field)
    assert api.get(COMMANDS).json()["items"] == []


def test_a_command_is_an_event_of_its_run(api):
    api.post(COMMANDS, json={"action": "stop", "reason": "<b>why</b>"})
    (event,) = api.get(f"{RUN}/events", params={"rule": "command"}).json()["items"]
    assert event["message"] == "stop asked for by anonymous: <b>why</b>"


def test_a_run_that_has_ended_or_never_was_takes_no_command(api):
    assert_problem(
        api.post("/api/v1/runs/no/commands", json={"action": "stop"}), 404, "run-unknown"
    )
    assert_problem(api.get("/api/v1/runs/no/commands"), 404, "run-unknown")
    api.post(f"{RUN}/finish", json={"state": "failed"})
    assert_problem(api.post(COMMANDS, json={"action": "stop"}), 409, "run-closed")


def test_a_job_that_takes_none_gets_no_more(api):
    for _ in range(MAX_WAITING_COMMANDS):
        assert api.post(COMMANDS, json={"action": "checkpoint"}).status_code == 201
    assert_problem(api.post(COMMANDS, json={"action": "stop"}), 409, "commands-waiting")
    assert len(acknowledged(api, 0)) == MAX_WAITING_COMMANDS
    acknowledged(api, 1, seen=MAX_WAITING_COMMANDS)
    assert api.post(COMMANDS, json={"action": "stop"}).status_code == 201


def test_a_job_that_starts_is_told_at_once_what_waits_for_it(api):
    api.post(COMMANDS, json={"action": "stop", "reason": "why"})
    told = api.post("/api/v1/runs", json={"run": "r"}).json()
    assert told["commands"] == [{"id": 1, "action": "stop", "reason": "why"}]
    acknowledged(api, 0, seen=1)
    assert api.post("/api/v1/runs", json={"run": "r"}).json()["commands"] == []
