"""The sender against real sockets: what a service does wrong must cost the training nothing."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from ledger import CUT, Ledger, Reply, Seen, serving, told

from snc_client.demo.service import free_port
from snc_client.sender import Pace, Sender
from snc_service.wire import ABSENT, RUN_NAME, LayerTable, Policy, PolicyEntry, decode

TABLE = LayerTable.of_names(["fc1.weight", "fc2.weight", "fc3.weight"])
METRICS = ("sigma", "threshold")
PER_ROW = len(METRICS) * len(TABLE.layers)
QUICK = Pace(
    linger_seconds=0.01,
    first_backoff_seconds=0.01,
    max_backoff_seconds=0.03,
    slow_retry_seconds=0.03,
)


@pytest.fixture
def ledger():
    with serving(Ledger()) as ledger:
        yield ledger


@pytest.fixture
def dead_port():
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        yield held.getsockname()[1]


def sender(url: str, **keywords) -> Sender:
    return Sender(url, **{"table": TABLE, "metrics": METRICS, "pace": QUICK, **keywords})


def values(step: int) -> np.ndarray:
    return (
        np.random.default_rng(step)
        .standard_normal((len(METRICS), len(TABLE.layers)))
        .astype(np.float32)
    )


def put(out: Sender, *steps: int, **scalars: float) -> None:
    for step in steps:
        out.put(step, values(step), scalars, 1_763_800_000.0 + step)


def batches_posted(ledger: Ledger) -> list[Seen]:
    return ledger.posted("/batches")


def once(reply: Reply, ending: str = "/batches"):
    """Return a fault that strikes the first request whose path ends so."""
    left = [reply]
    return lambda seen: left.pop() if seen.path.endswith(ending) and left else None


class TestDelivery:
    def test_every_value_arrives_once_and_bit_for_bit(self, ledger):
        out = sender(ledger.url, name="a name", project="p", config={"lr": 1e-3})
        put(out, *range(200), loss=0.5)
        out.close()
        rows = ledger.rows(out.run)
        assert list(rows) == [(0, step) for step in range(200)]
        for (_, step), (got, scalars) in rows.items():
            assert got.tobytes() == values(step).tobytes()
            assert scalars == {"loss": 0.5}
        assert (out.sent_values, out.dropped_values) == (200 * (PER_ROW + 1), 0)
        assert (out.errors, out.last_error, out.state) == (0, None, "closed")
        assert ledger.runs[out.run] == {
            "run": out.run,
            "name": "a name",
            "project": "p",
            "config": {"lr": 1e-3},
        }
        assert ledger.ends == {out.run: "finished"}
        assert ledger.batches[out.run][0].times[0] == 1_763_800_000.0

    def test_nan_infinity_and_not_measured_stay_what_they_are(self, ledger):
        out = sender(ledger.url)
        odd = np.array([[np.nan, np.inf, ABSENT], [-np.inf, 0.0, 1.0]], np.float32)
        out.put(0, odd, {"loss": float("nan"), "lr": 1e300}, 1.0)
        out.close()
        ((got, scalars),) = ledger.rows(out.run).values()
        assert got.tobytes() == odd.tobytes()
        assert np.isnan(scalars["loss"])
        assert scalars["lr"] == np.inf

    def test_a_scalar_that_a_step_lacks_is_not_measured_there(self, ledger):
        out = sender(ledger.url, pace=Pace(linger_seconds=60))
        put(out, 0, loss=1.0)  # goes out at once: nothing was sent before it
        ledger.until(lambda: ledger.num_batches == 1)
        put(out, 1, loss=2.0)
        put(out, 2, lr=0.5)
        out.close()
        rows = [scalars for _, scalars in ledger.rows(out.run).values()]
        assert rows == [{"loss": 1.0}, {"loss": 2.0}, {"lr": 0.5}]
        assert ledger.num_batches == 2

    def test_the_caller_may_use_its_buffer_again(self, ledger):
        out = sender(ledger.url)
        buffer = values(0).copy()
        out.put(0, buffer, {}, 1.0)
        buffer[:] = -1
        out.close()
        assert ledger.rows(out.run)[0, 0][0].tobytes() == values(0).tobytes()

    def test_the_run_is_known_before_the_service_answers(self, dead_port):
        drawn = {sender(f"http://127.0.0.1:{dead_port}").run for _ in range(2)}
        assert len(drawn) == 2
        assert all(RUN_NAME.fullmatch(run) for run in drawn)
        assert sender(f"http://127.0.0.1:{dead_port}", run="mine").run == "mine"

    def test_steps_wait_together_and_leave_at_the_latest_at_sixty_four(self, ledger):
        out = sender(ledger.url, pace=Pace(linger_seconds=3600))
        put(out, 0)
        ledger.until(lambda: ledger.num_batches == 1)
        put(out, *range(1, 64))
        assert ledger.num_batches == 1
        put(out, 64)
        ledger.until(lambda: ledger.num_batches == 2)
        assert ledger.batches[out.run][1].steps == tuple(range(1, 65))
        out.close()

    def test_a_batch_keeps_the_limits_of_the_wire(self, ledger):
        gate = threading.Event()
        ledger.before = lambda _: gate.wait() and None
        out = sender(ledger.url)
        put(out, *range(2_500))
        gate.set()
        out.close()
        assert [len(batch.steps) for batch in ledger.batches[out.run]] == [1_024, 1_024, 452]

    def test_fifty_thousand_layers_fit(self, ledger):
        metrics = tuple("abcdefghi")
        table = LayerTable.of_names(f"blocks.{i}.weight" for i in range(50_000))
        out = sender(ledger.url, table=table, metrics=metrics)
        big = np.arange(9 * 50_000, dtype=np.float32).reshape(9, -1)
        for step in range(6):
            out.put(step, big + step, {}, 1.0)
        out.close(30)
        assert max(len(seen.body) for seen in batches_posted(ledger)) <= 8 * 2**20
        rows = ledger.rows(out.run)
        assert len(rows) == 6
        assert all(np.array_equal(got, big + step) for (_, step), (got, _) in rows.items())

    def test_names_the_wire_cannot_carry_do_not_hold_up_the_rest(self, ledger):
        out = sender(ledger.url)
        out.put(0, values(0), {"Loss!": 1.0, "loss": 2.0}, 1.0)
        out.put(1, values(1), {f"x{i}": 0.0 for i in range(40)}, 1.0)
        out.close()
        rows = ledger.rows(out.run)
        assert rows[0, 0][1] == {"loss": 2.0}
        assert len(rows) == 2

    def test_a_row_of_another_shape_or_an_impossible_step_is_counted_as_lost(self, ledger):
        out = sender(ledger.url)
        out.put(0, np.ones((1, 1), np.float32), {"loss": 1.0}, 1.0)
        out.put(-1, values(0), {}, 1.0)
        out.put(2**53, values(0), {}, 1.0)
        out.put(0, values(0), {}, float("nan"))
        out.put(0, values(0), {}, 1.0)
        out.close()
        assert out.dropped_values == 2 + 3 * PER_ROW
        (batch,) = ledger.batches[out.run]
        assert batch.dropped == out.dropped_values

    def test_what_cannot_be_json_in_a_configuration_travels_as_text(self, ledger, tmp_path):
        config = {"path": tmp_path, "nan": float("nan"), "deep": [{"inf": -np.inf}], 3: True}
        out = sender(ledger.url, config=config)
        out.close()
        assert ledger.runs[out.run]["config"] == {
            "path": str(tmp_path),
            "nan": "nan",
            "deep": [{"inf": "-inf"}],
            "3": True,
        }

    def test_the_token_goes_to_the_service_and_nowhere_else(self, ledger, caplog):
        caplog.set_level(logging.DEBUG, "snc")
        ledger.before = once(told(401, detail="no"), "/runs")
        out = sender(ledger.url, token="s3cret")
        put(out, 0)
        out.close()
        assert {seen.headers["authorization"] for seen in ledger.seen} == {"Bearer s3cret"}
        assert "s3cret" not in caplog.text


class TestAttempts:
    def test_steps_that_go_back_start_the_next_attempt(self, ledger):
        out = sender(ledger.url)
        put(out, 0, 1, 2, 1, 2, 3, 0)
        out.close()
        assert list(ledger.rows(out.run)) == [
            *((0, 0), (0, 1), (0, 2)),
            *((1, 1), (1, 2), (1, 3)),
            (2, 0),
        ]

    def test_the_same_step_again_is_no_rewind(self, ledger):
        out = sender(ledger.url)
        put(out, 0, 1, 1, 2)
        out.close()
        assert [(b.attempt, b.steps) for b in ledger.batches[out.run]] == [
            (0, (0, 1)),
            (0, (1, 2)),
        ]

    @pytest.mark.parametrize(("first", "attempt"), [(80, 4), (100, 4), (101, 3), (500, 3)])
    def test_a_resumed_job_starts_an_attempt_unless_it_goes_on_after_the_last_step(
        self, ledger, first, attempt
    ):
        ledger.attempt, ledger.last_step = 3, 100
        out = sender(ledger.url)
        put(out, first)
        out.close()
        assert list(ledger.rows(out.run)) == [(attempt, first)]


class TestPolicy:
    def test_a_new_policy_is_handed_over_once_and_the_newest_wins(self, ledger):
        ledger.policy_version, ledger.policy = 1, {"entries": [{"pattern": "*", "threshold": 2}]}
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: ledger.num_batches == 1)
        ledger.policy_version, ledger.policy = 2, {"entries": []}
        put(out, 1)
        ledger.until(lambda: ledger.num_batches == 2)
        put(out, 2)
        out.close()
        assert out.take_policy() == (2, Policy())
        assert out.take_policy() is None
        versions = [seen.headers["snc-policy-version"] for seen in batches_posted(ledger)]
        assert versions[0] == "1"
        assert versions[-1] == "2"

    def test_the_job_brings_its_own_and_version_0_does_not_replace_it(self, ledger):
        own = Policy((PolicyEntry("fc*", "3x init", "rescale"),))
        out = sender(ledger.url, policy=own)
        put(out, 0)
        out.close()
        assert Policy.parse(ledger.runs[out.run]["policy"]) == own
        assert out.take_policy() is None

    @pytest.mark.parametrize(
        ("version", "policy"),
        [
            (1, {"entries": [{"pattern": "*", "threshold": -1}]}),
            (1, {"entries": [{"pattern": "*", "threshold": 1, "action": "explode"}]}),
            (1, {"entries": "all"}),
            (1, ["a list"]),
            (1, 7),
            (True, {"entries": []}),
            (-1, {"entries": []}),
            (2**60, {"entries": []}),
            ("1", {"entries": []}),
        ],
    )
    def test_what_is_no_policy_is_not_handed_over(self, ledger, version, policy):
        def answer(seen: Seen) -> Reply | None:
            if seen.path.endswith("/batches"):
                return told(200, accepted=1, policy_version=version, policy=policy)
            return None

        ledger.after = answer
        out = sender(ledger.url)
        put(out, 0)
        out.close()
        assert out.take_policy() is None
        assert out.sent_values == PER_ROW


class TestRepairs:
    def test_an_unknown_layer_table_is_put_and_the_same_bytes_are_sent_again(self, ledger):
        out = sender(ledger.url)
        put(out, 0)
        out.close()
        first, second = batches_posted(ledger)
        assert first.body == second.body
        (table,) = (seen for seen in ledger.seen if seen.method == "PUT")
        assert table.body == TABLE.body
        assert ledger.num_batches == 1

    def test_a_lost_acknowledgement_is_answered_with_the_same_bytes(self, ledger):
        ledger.tables[TABLE.hash] = TABLE
        ledger.after = once(CUT)
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: len(batches_posted(ledger)) == 2)
        put(out, 1)
        out.close()
        first, second, *_ = batches_posted(ledger)
        assert first.body == second.body
        assert list(ledger.rows(out.run)) == [(0, 0), (0, 1)]
        assert [batch.seq for batch in ledger.batches[out.run]] == [0, 1]
        assert (out.sent_values, out.dropped_values) == (2 * PER_ROW, 0)

    def test_a_forgotten_run_is_created_again_and_goes_on(self, ledger):
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: ledger.num_batches == 1)
        ledger.runs.clear()
        ledger.batches.clear()
        ledger.tables.clear()
        put(out, 1)
        out.close()
        assert list(ledger.rows(out.run)) == [(0, 1)]
        (batch,) = ledger.batches[out.run]
        assert (batch.seq, batch.skipped) == (1, 1)  # after a sequence-gap that expected 0
        assert out.dropped_values == 0

    def test_a_conflict_gives_the_batch_up_and_the_stream_goes_on(self, ledger):
        ledger.before = once(told(409, type="https://x/problems/sequence-conflict"))
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: bool(batches_posted(ledger)))
        put(out, 1)
        out.close()
        assert list(ledger.rows(out.run)) == [(0, 1)]
        assert (out.sent_values, out.dropped_values) == (PER_ROW, PER_ROW)

    @pytest.mark.parametrize("status", [400, 413, 415, 422])
    def test_a_refused_batch_is_dropped_and_the_next_one_declares_it(self, ledger, status, caplog):
        ledger.tables[TABLE.hash] = TABLE
        ledger.before = once(told(status, detail="steps must increase"))
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: len(batches_posted(ledger)) == 1)
        put(out, 1)
        out.close()
        (batch,) = ledger.batches[out.run]
        assert (batch.seq, batch.skipped, batch.dropped) == (1, 1, PER_ROW)
        assert len(batches_posted(ledger)) == 2, "declared at once, not after a sequence-gap"
        assert (out.sent_values, out.dropped_values) == (PER_ROW, PER_ROW)
        assert "steps must increase" in caplog.text

    def test_after_a_413_batches_are_smaller(self, ledger):
        def narrow(seen: Seen) -> Reply | None:
            return told(413) if len(seen.body) > 1.5 * 2**20 else None

        ledger.before = narrow
        table = LayerTable.of_names(map(str, range(10_000)))
        out = sender(ledger.url, table=table, metrics=("sigma",))
        for step in range(400):  # 16 MB; 4 MiB a batch, then 2, then 1
            out.put(step, np.zeros((1, 10_000), np.float32), {}, 1.0)
        out.close(30)
        assert out.sent_values > 200 * 10_000
        assert out.sent_values + out.dropped_values == 400 * 10_000
        assert ledger.num_batches > 8

    def test_a_refused_description_does_not_cost_the_run(self, ledger):
        def strict(seen: Seen) -> Reply | None:
            refused = seen.path.endswith("/runs") and b"config" in seen.body
            return told(422, detail="config must be smaller") if refused else None

        ledger.before = strict
        out = sender(ledger.url, config={"a": 1})
        put(out, 0)
        out.close()
        assert ledger.runs[out.run] == {"run": out.run}
        assert list(ledger.rows(out.run)) == [(0, 0)]

    def test_a_batch_on_which_the_service_always_fails_does_not_hold_the_others(self, ledger):
        ledger.tables[TABLE.hash] = TABLE

        def poisoned(seen: Seen) -> Reply | None:
            if seen.path.endswith("/batches") and decode(seen.body).seq == 0:
                return Reply(500, b"<h1>Internal Server Error</h1>", "text/html")
            return None

        ledger.before = poisoned
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: bool(batches_posted(ledger)))
        put(out, 1)
        ledger.until(lambda: ledger.num_batches == 1)
        out.close()
        (batch,) = ledger.batches[out.run]
        assert (batch.seq, batch.skipped, batch.dropped) == (1, 1, PER_ROW)

    @pytest.mark.parametrize("away", [CUT, told(503), told(429)], ids=["cut", "503", "429"])
    def test_after_a_long_outage_a_batch_is_repaired_and_not_given_up(self, ledger, away):
        left = [away] * 40
        ledger.before = lambda seen: left.pop() if seen.path.endswith("/batches") and left else None
        out = sender(ledger.url)
        put(out, 0)  # the first answer of the service will be that it does not know the table
        ledger.until(lambda: ledger.num_batches == 1)
        out.close()
        assert (out.sent_values, out.dropped_values) == (PER_ROW, 0)


WRONG = {
    "a page": Reply(200, b"<html>hello</html>", "text/html"),
    "a login": Reply(302, b"", "text/html", (("Location", "http://127.0.0.1:1/login"),)),
    "half of a JSON": Reply(200, b'{"accepted": 3'),
    "a bare NaN": Reply(200, b'{"accepted": 6, "policy_version": NaN}'),
    "a list": Reply(200, b"[1, 2]"),
    "nothing": Reply(204),
    "a number": Reply(200, b"1"),
    "another object": told(200, ok=True),
    "negative": told(200, accepted=-1, run="another"),
    "not UTF-8": Reply(200, b'{"accepted": "\xff"}'),
    "bottomless": Reply(200, b"[" * 200_000),
    "too long": Reply(200, b" " * (3 * 2**20)),
    "an error page": Reply(500, b"<h1>500</h1>", "text/html"),
    "bad gateway": Reply(502, b"<h1>502</h1>", "text/html"),
    "timeout": Reply(504, b""),
    "no token": told(401, detail="no token"),
    "forbidden": told(403, detail="another scope"),
    "a gap in the future": told(409, type="/problems/sequence-gap", expected=10**6),
    "a gap that is none": told(409, type="/problems/sequence-gap", expected="0"),
    "an unknown conflict": told(409, type=["?"]),
    "a teapot": told(418),
    "gone": told(410),
    "silence": CUT,
}


class TestTrouble:
    @pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
    def test_a_wrong_answer_acknowledges_nothing_and_everything_arrives_later(self, ledger, wrong):
        broken = threading.Event()
        broken.set()
        ledger.before = lambda _: wrong if broken.is_set() else None
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: len(ledger.seen) >= 3)
        assert out.sent_values == 0
        broken.clear()
        ledger.until(lambda: ledger.num_batches == 1)
        # The same again in the middle of a run.
        before = len(ledger.seen)
        broken.set()
        put(out, 1)
        ledger.until(lambda: len(ledger.seen) >= before + 3)
        broken.clear()
        ledger.until(lambda: ledger.num_batches == 2)
        out.close()
        assert list(ledger.rows(out.run)) == [(0, 0), (0, 1)]
        assert (out.sent_values, out.dropped_values) == (2 * PER_ROW, 0)
        assert out.errors >= 2

    def test_retry_after_is_obeyed(self, ledger):
        ledger.before = once(
            Reply(503, b"{}", headers=(("Retry-After", "0.7"),)), ending="/batches"
        )
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: len(batches_posted(ledger)) >= 2)
        first, second, *_ = batches_posted(ledger)
        assert second.at - first.at >= 0.7
        out.close()

    def test_a_service_that_never_answers_holds_up_neither_put_nor_close(self, ledger, caplog):
        released = threading.Event()
        ledger.before = lambda _: released.wait() and None
        bound = 100 * 4 * PER_ROW
        out = sender(ledger.url, queue_bytes=bound)
        put(out, *range(1_000))
        assert out.dropped_values == 900 * PER_ROW
        out.close(timeout=0.05)
        # All this happened while the first request was still without an answer.
        assert [seen.path for seen in ledger.seen] == ["/api/v1/runs"]
        assert (out.sent_values, out.dropped_values) == (0, 1_000 * PER_ROW)
        assert len([r for r in caplog.records if "are lost" in r.message]) == 1
        released.set()

    def test_the_oldest_steps_go_first_when_memory_is_full(self, ledger):
        gate = threading.Event()
        ledger.before = lambda _: gate.wait() and None
        out = sender(ledger.url, queue_bytes=10 * 4 * PER_ROW)
        put(out, *range(50))
        gate.set()
        out.close()
        assert [step for _, step in ledger.rows(out.run)] == list(range(40, 50))
        assert ledger.batches[out.run][0].dropped == 40 * PER_ROW == out.dropped_values

    def test_no_service_costs_nothing_and_is_said_once(self, dead_port, caplog):
        caplog.set_level(logging.INFO)
        out = sender(f"http://127.0.0.1:{dead_port}", run="alone")
        put(out, *range(100))
        deadline = time.monotonic() + 30
        while out.errors < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert out.state == "waiting"
        out.close()
        out.close()
        assert (out.sent_values, out.dropped_values, out.state) == (0, 100 * PER_ROW, "closed")
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 2
        assert "takes no values now" in messages[0]
        assert "600 are lost" in messages[1]

    def test_at_the_end_a_service_that_was_gone_is_not_waited_for(self, ledger):
        ledger.before = lambda _: CUT
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: len(ledger.seen) >= 3)
        before = len(ledger.seen)
        out.close(timeout=20)  # time for hundreds of tries
        assert len(ledger.seen) - before <= 2
        assert out.dropped_values == PER_ROW

    def test_at_the_end_a_service_that_stumbles_gets_its_time(self, ledger):
        out = sender(ledger.url)
        put(out, 0)
        ledger.until(lambda: ledger.num_batches == 1)
        cuts = [CUT] * 5
        ledger.before = lambda _: cuts.pop() if cuts else None
        put(out, 1)
        out.close(timeout=20)
        assert len(ledger.rows(out.run)) == 2
        assert ledger.ends == {out.run: "finished"}

    def test_a_service_that_starts_late_gets_everything(self, dead_port):
        ledger = Ledger()
        out = sender(f"http://127.0.0.1:{dead_port}")
        put(out, *range(10))
        while out.errors < 2:
            time.sleep(0.01)
        with serving(ledger, dead_port):
            ledger.until(lambda: ledger.num_batches == 1)
            out.close()
        assert len(ledger.rows(out.run)) == 10

    def test_after_close_rows_are_counted_as_lost_and_nothing_is_sent(self, ledger):
        out = sender(ledger.url)
        out.close()
        requests = len(ledger.seen)
        put(out, 0)
        assert out.dropped_values == PER_ROW
        assert len(ledger.seen) == requests

    def test_the_requests_do_not_fill_the_log_of_the_job(self, ledger, caplog):
        caplog.set_level(logging.INFO)
        out = sender(ledger.url)
        put(out, 0)
        out.close()
        assert "HTTP Request" not in caplog.text

    def test_the_random_numbers_of_the_job_stay_as_they_are(self, dead_port):
        random.seed(1)
        np.random.seed(1)
        before = random.getstate(), np.random.get_state()[1].tobytes()
        out = sender(f"http://127.0.0.1:{dead_port}")
        put(out, 0)
        out.close()
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


class TestArguments:
    @pytest.mark.parametrize(
        ("keywords", "named"),
        [
            ({"url": "127.0.0.1:8470"}, "url must be"),
            ({"url": "ftp://host"}, "url must be"),
            ({"url": ""}, "url must be"),
            ({"run": "../etc"}, "run must match"),
            ({"run": ""}, "run must match"),
            ({"token": "a\nb"}, "token must be"),
            ({"token": ""}, "token must be"),
            ({"metrics": ("Sigma",)}, "metrics must match"),
            ({"metrics": tuple(f"m{i}" for i in range(33))}, "metrics must be at most"),
        ],
    )
    def test_what_could_never_be_sent_is_refused_at_once(self, keywords, named):
        with pytest.raises(ValueError, match=re.escape(named)):
            sender(**{"url": "http://127.0.0.1:1", **keywords})

    def test_a_row_beyond_the_largest_body_is_refused_at_once(self):
        table = LayerTable.of_names(map(str, range(65_536)))
        metrics = tuple(f"m{i}" for i in range(32))
        with pytest.raises(ValueError, match="metrics x layers must fit"):
            sender("http://127.0.0.1:1", table=table, metrics=metrics)

    def test_a_refused_token_is_not_shown(self):
        with pytest.raises(ValueError, match="token") as caught:
            sender("http://127.0.0.1:1", token="s3cret\n")
        assert "s3cret" not in str(caught.value)


def program(ledger: Ledger, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter, with a sender ``out`` to the ledger."""
    head = f"""
        import os, sys, time
        import numpy as np
        from snc_client.sender import Pace, Sender
        from snc_service.wire import LayerTable
        assert "httpx" not in sys.modules, "the import belongs to the thread"
        out = Sender({ledger.url!r}, run="r", table=LayerTable.of_names(["a"]),
                     metrics=("sigma",), queue_bytes=4_000)
        def put(step):
            out.put(step, np.full((1, 1), step, np.float32), {{}}, 1.0)
    """
    text = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, timeout=100
    )


class TestProcesses:
    def test_the_exit_of_the_interpreter_flushes_and_finishes(self, ledger):
        done = program(ledger, "for step in range(100): put(step)")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(ledger.rows("r")) == 100
        assert ledger.ends == {"r": "finished"}

    def test_an_exception_that_ends_the_job_marks_the_run_failed(self, ledger):
        done = program(ledger, "put(0); raise RuntimeError('the job broke')")
        assert done.returncode == 1
        assert "the job broke" in done.stderr
        assert ledger.ends == {"r": "failed"}
        assert len(ledger.rows("r")) == 1

    def test_a_sender_that_is_dropped_still_delivers(self, ledger):
        out = sender(ledger.url)
        put(out, 0, 1)
        run = out.run
        del out
        gc.collect()
        ledger.until(lambda: run in ledger.ends)
        assert len(ledger.rows(run)) == 2

    def test_a_forked_child_sends_nothing_and_exits_cleanly(self, ledger):
        done = program(
            ledger,
            """
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside a thread: the point
            put(0)
            for leave in (os._exit, sys.exit):
                child = os.fork()
                if child == 0:
                    for step in range(10, 2_000): put(step)
                    assert out.dropped_values == 0, "nothing was kept, so nothing fell out"
                    assert out.take_policy() is None
                    out.close()
                    leave(0)
                assert os.waitpid(child, 0)[1] == 0
            put(1)
            """,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert list(ledger.rows("r")) == [(0, 0), (0, 1)]
        assert len(ledger.posted("/finish")) == 1

    def test_a_child_forked_during_the_import_of_httpx_can_import_it(self, ledger):
        done = program(
            ledger,
            """
            import signal, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            while "httpx" not in sys.modules: time.sleep(0.001)
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                import httpx
                httpx.Client
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            put(0)
            """,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(ledger.rows("r")) == 1

    def test_a_job_without_a_service_ends_by_itself(self, dead_port):
        nobody = Ledger()
        nobody.url = f"http://127.0.0.1:{dead_port}"
        done = program(nobody, "for step in range(100): put(step)")
        assert done.returncode == 0
        assert "0 values reached the service, 100 are lost" in done.stderr
        assert "Traceback" not in done.stderr


class TestRealService:
    @pytest.fixture
    def api(self, service_url):
        with httpx.Client(base_url=f"{service_url}/api/v1", timeout=30) as api:
            api.service_url = service_url
            yield api

    def history(self, api: httpx.Client, run: str, **query) -> dict:
        answer = api.get(
            f"/runs/{run}/layers/fc2.weight/history", params={"metric": "sigma", **query}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def test_what_was_put_is_what_rest_returns(self, api):
        out = sender(api.service_url, project="p", name="n", config={"lr": 0.1})
        put(out, *range(300), loss=0.25)
        out.close(30)
        assert (out.dropped_values, out.errors) == (0, 0), out.last_error
        found = self.history(api, out.run)
        assert found["steps"] == list(range(300))
        assert np.array_equal(
            np.array(found["mean"], np.float32),
            np.array([values(step)[0, 1] for step in range(300)]),
        )
        run = api.get(f"/runs/{out.run}").json()
        assert (run["state"], run["project"], run["name"]) == ("finished", "p", "n")
        assert run["last_step"] == 299

    def test_a_rewind_and_a_resume_each_start_an_attempt(self, api):
        first = sender(api.service_url)
        put(first, 0, 1, 2, 3, 2, 3)
        first.close(30)
        again = sender(api.service_url, run=first.run)
        put(again, 1)
        again.close(30)
        steps = [self.history(api, first.run, attempt=n)["steps"] for n in range(3)]
        assert steps == [[0, 1, 2, 3], [2, 3], [1]]
        assert first.dropped_values == again.dropped_values == 0

    def test_a_policy_changed_over_rest_comes_back_with_the_next_acknowledgement(self, api):
        out = sender(api.service_url, policy=Policy((PolicyEntry("*", 2.0),)))
        put(out, 0)
        while (taken := out.take_policy()) is None:
            time.sleep(0.01)
        assert taken == (1, Policy((PolicyEntry("*", 2.0),)))
        changed = {"entries": [{"pattern": "fc*", "threshold": "3x init", "action": "observe"}]}
        assert api.put(f"/runs/{out.run}/policy", json=changed).status_code == 200
        put(out, 1)
        while (taken := out.take_policy()) is None:
            time.sleep(0.01)
        assert taken == (2, Policy.parse(changed))
        out.close(30)

    def test_a_deleted_run_comes_back_with_what_follows(self, api):
        out = sender(api.service_url)
        put(out, 0)
        while out.sent_values < PER_ROW:
            time.sleep(0.01)
        assert api.delete(f"/runs/{out.run}").status_code == 204
        put(out, 1)
        out.close(30)
        assert self.history(api, out.run)["steps"] == [1]
        assert (out.sent_values, out.dropped_values) == (2 * PER_ROW, 0)

    def test_kill_9_of_the_service_loses_and_doubles_nothing(self, tmp_path):
        port = free_port(0)
        out = sender(f"http://127.0.0.1:{port}", run="r")
        for start in range(0, 300, 100):
            put(out, *range(start, start + 50))
            acknowledged = out.sent_values
            with served(tmp_path, port) as api:
                while out.sent_values == acknowledged:
                    time.sleep(0.01)
                for step in range(start + 50, start + 100):  # the service dies in the midst of it
                    put(out, step)
                    time.sleep(0.002)
                if start == 200:
                    out.close(60)
                    found = self.history(api, "r")
                    run = api.get("/runs/r").json()
        assert found["steps"] == list(range(300))
        expected = np.array([values(step)[0, 1] for step in range(300)])
        assert np.array_equal(np.array(found["mean"], np.float32), expected)
        assert (out.sent_values, out.dropped_values) == (300 * PER_ROW, 0)
        assert (run["state"], run["attempt"], run["dropped_values"]) == ("finished", 0, 0)


@contextlib.contextmanager
def served(folder: Path, port: int) -> Iterator[httpx.Client]:
    """Run ``snc serve`` on its store in ``folder`` until it is killed with -9."""
    command = [sys.executable, "-m", "snc_service.cli", "serve", f"--port={port}"]
    process = subprocess.Popen(
        [*command, f"--store=sqlite:///{folder / 'snc.db'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as api:
        try:
            yield api
        finally:
            process.kill()
            process.wait()
