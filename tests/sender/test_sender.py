"""The sender against real sockets: what a service does wrong must cost the training nothing."""

from __future__ import annotations

import logging
import re
import threading

import numpy as np
import pytest
from ledger import Reply, Seen, told
from sending import (
    PER_ROW,
    batches_posted,
    once,
    put,
    sender,
    values,
)

from snc_client.sender import Pace
from snc_service.wire import ABSENT, RUN_NAME, LayerTable, Policy, PolicyEntry


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
