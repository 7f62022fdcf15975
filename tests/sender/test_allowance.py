"""What the answers of a hostile service cost the processor of the job: a fiftieth of it at most."""

from __future__ import annotations

import time

from ledger import Reply
from sending import put, sender

from snc_client.sender import http
from snc_client.sender.allowance import PAUSES, Allowance
from snc_client.sender.failures import Failures
from snc_client.sender.inbox import Inbox


class Clocks:
    """Processor time and elapsed time that pass as a test says."""

    def __init__(self) -> None:
        self.processor = self.elapsed = 0.0

    def allowance(self) -> Allowance:
        return Allowance(lambda: self.processor, lambda: self.elapsed)

    def work(self, seconds: float) -> None:
        self.processor += seconds
        self.elapsed += seconds


def policy(pattern: str) -> dict:
    return {"entries": [{"pattern": pattern, "threshold": 1.0}]}


def test_new_policies_without_end_cost_a_fiftieth_of_the_time():
    clocks = Clocks()
    inbox = Inbox(Failures(), lambda _: clocks.work(0.5), clocks.allowance())
    for version in range(1, 100_000):
        inbox.take_over({"policy": policy(f"p{version}"), "policy_version": version})
        clocks.elapsed += 0.01
    assert 0.9 * clocks.elapsed / PAUSES < clocks.processor <= clocks.elapsed / PAUSES + 0.5


def test_a_policy_that_is_none_counts_like_one():
    clocks = Clocks()
    allowance = clocks.allowance()
    inbox = Inbox(Failures(), allowance=allowance)
    with allowance.spending():
        clocks.work(1.0)
    inbox.take_over({"policy": {"entries": 7}, "policy_version": 1})
    assert inbox._failures.errors == 0
    clocks.elapsed += PAUSES
    inbox.take_over({"policy": {"entries": 7}, "policy_version": 1})
    assert inbox._failures.errors == 1


def test_a_policy_that_was_put_off_is_taken_when_it_comes_again():
    clocks = Clocks()
    inbox = Inbox(Failures(), lambda _: clocks.work(1.0), clocks.allowance())
    inbox.take_over({"policy": policy("first"), "policy_version": 1})
    second = {"policy": policy("second"), "policy_version": 2}
    inbox.take_over(second)
    # The version that the next batch reports is the old one, so the service sends it again.
    assert inbox.policy_version == 1
    clocks.elapsed += PAUSES
    inbox.take_over(second)
    taken = inbox.take_policy()
    assert taken is not None
    assert (taken[0], taken[1].entries[0].pattern) == (2, "second")


def test_a_service_that_sends_a_dear_policy_with_every_answer_is_heard_once(ledger):
    heard = []

    def dear(parsed) -> None:
        heard.append(parsed)
        until = time.thread_time() + 1.0  # the next one is due in 50 s
        while time.thread_time() < until:
            pass

    def another(_) -> None:
        ledger.policy_version += 1
        ledger.policy = policy(f"p{ledger.policy_version}")

    ledger.before = another
    out = sender(ledger.url, on_policy=dear)
    for step in range(5):
        put(out, step)
        ledger.until(lambda wanted=step + 1: ledger.num_batches >= wanted)
    out.close()
    assert len(heard) == 1
    assert len(ledger.rows(out.run)) == 5


def test_answers_of_brackets_are_parsed_once_and_then_left(ledger, monkeypatch):
    parsed = []
    real = http._json_object

    def counted(data: bytes) -> dict:
        if len(data) > http.SMALL_ANSWER_BYTES:
            parsed.append(len(data))
            until = time.thread_time() + 1.0
            while time.thread_time() < until:
                pass
        return real(data)

    monkeypatch.setattr(http, "_json_object", counted)
    brackets = b'{"a":[' + b"[]," * 100_000 + b"[]]}"
    left = [6]

    def fault(seen):
        if not seen.path.endswith("/batches") or not left[0]:
            return None
        left[0] -= 1
        return Reply(200, brackets)

    ledger.before = fault
    out = sender(ledger.url)
    put(out, 0)
    ledger.until(lambda: ledger.num_batches == 1)
    out.close()
    assert parsed == [len(brackets)]
    assert out.sent_values > 0
