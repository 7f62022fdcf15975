"""The sender and a service that loses, refuses, stalls or goes away."""

from __future__ import annotations

import logging
import random
import threading
import time

import numpy as np
import pytest
from ledger import CUT, Ledger, Reply, Seen, serving, told
from sending import (
    PER_ROW,
    TABLE,
    batches_posted,
    once,
    put,
    sender,
)

from snc_service.wire import LayerTable, decode


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
