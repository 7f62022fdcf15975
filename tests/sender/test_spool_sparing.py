"""A full spool: the oldest inactive values go first, then the oldest segments, all counted."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from ledger import Ledger, Reply, serving

from snc_client.sender import Pace, Sender
from snc_client.spool import Spool
from snc_service.wire import LayerTable, absent

LAYERS = 40
TABLE = LayerTable.of_names([f"l{i}" for i in range(LAYERS)])
METRICS = ("sigma", "threshold")
PER_ROW = len(METRICS) * LAYERS + 1
PACE = Pace(linger_seconds=0.01, first_backoff_seconds=0.01, max_backoff_seconds=0.03)


def half(payload: bytes, weight: int) -> tuple[bytes, int]:
    """Spare all but the first ten bytes of an entry."""
    return payload[:10], min(weight, 10)


def entry(i: int) -> bytes:
    return b"%010d" % i + b"x" * 90


def log(folder, **keywords) -> Spool:
    return Spool(folder, **{"max_bytes": 20_000, "segment_bytes": 2_000, "spare": half, **keywords})


def read_all(spool: Spool) -> list[bytes]:
    return [payload for _, payload in iter(spool.next, None)]


class TestLog:
    def test_the_oldest_entries_are_spared_before_any_is_dropped(self, tmp_path):
        spool = log(tmp_path)
        for i in range(300):
            spool.append([(entry(i), 100)])
            assert spool.num_bytes <= 20_000
        found = read_all(spool)
        assert [payload[:10] for payload in found] == [entry(i)[:10] for i in range(300)]
        spared = [len(payload) == 10 for payload in found]
        assert spared == sorted(spared, reverse=True), "a newer one was spared before an older"
        assert 100 < sum(spared) < 300
        assert spool.dropped_weight == 90 * sum(spared)

    def test_when_nothing_more_can_be_spared_the_oldest_segments_go(self, tmp_path):
        spool = log(tmp_path)
        for i in range(3_000):
            spool.append([(entry(i), 100)])
        assert spool.num_bytes <= 20_000
        assert sum(path.stat().st_size for path in tmp_path.glob("*.log")) == spool.num_bytes
        found = read_all(spool)
        lost = 3_000 - len(found)
        assert [int(payload[:10]) for payload in found] == list(range(lost, 3_000))
        whole = sum(len(payload) == 100 for payload in found)
        assert spool.dropped_weight == 100 * lost + 90 * (len(found) - whole)

    def test_what_was_read_is_not_rewritten(self, tmp_path):
        spool = log(tmp_path)
        for i in range(100):
            spool.append([(entry(i), 100)])
        under_way = [spool.next()[1] for _ in range(5)]
        for i in range(100, 300):
            spool.append([(entry(i), 100)])
        assert under_way == [entry(i) for i in range(5)]
        first = sorted(tmp_path.glob("*.log"))[0].read_bytes()
        assert entry(0) in first
        assert spool.next()[1] == entry(5)

    def test_what_gives_nothing_is_not_rewritten_and_goes_whole(self, tmp_path):
        spool = log(tmp_path, spare=lambda payload, weight: (payload, weight))
        for i in range(500):
            spool.append([(entry(i), 100)])
        found = read_all(spool)
        assert found == [entry(i) for i in range(500 - len(found), 500)]
        assert spool.dropped_weight == 100 * (500 - len(found))

    def test_the_note_and_the_numbers_survive_a_rewriting(self, tmp_path):
        spool = log(tmp_path)
        for i in range(250):
            spool.append([(entry(i), 100)])
            spool.set_note(b"note %d" % i)
        spool.close()
        again = log(tmp_path)
        assert again.note == b"note 249"
        assert again.first == 0
        assert [index for index, _ in iter(again.next, None)] == list(range(250))

    def test_a_disk_without_room_for_the_new_segment_costs_the_oldest(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("snc_client.spool.log._replace", refuse)
        spool = log(tmp_path)
        for i in range(500):
            spool.append([(entry(i), 100)])
        found = read_all(spool)
        assert found == [entry(i) for i in range(500 - len(found), 500)]
        assert not list(tmp_path.glob("*.part"))

    @pytest.mark.parametrize("moment", [0.05, 0.15, 0.3])
    def test_kill_9_while_segments_are_rewritten_leaves_each_entry_whole_or_spared(
        self, tmp_path, moment
    ):
        code = f"""
            from pathlib import Path
            from snc_client.spool import Spool
            spool = Spool(Path({str(tmp_path)!r}), max_bytes=200_000, segment_bytes=4_000,
                          spare=lambda payload, weight: (payload[:10], min(weight, 10)))
            for i in range(10**9):
                spool.append([(b"%010d" % i + b"x" * 90, 100)])
                if i % 100 == 0:
                    print(i, flush=True)
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if int(line) >= 2_500:  # the bound is reached
                    break
            time.sleep(moment)
            process.kill()
            told = [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.returncode == -signal.SIGKILL
        spool = log(tmp_path)
        assert not list(tmp_path.glob("*.part"))
        found = read_all(spool)
        numbers = [int(payload[:10]) for payload in found]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[-1] >= (told[-1] if told else 2_500)
        assert all(
            payload in (entry(i), entry(i)[:10]) for i, payload in zip(numbers, found, strict=True)
        )


def values(step: int) -> np.ndarray:
    """Return a row in which every tenth layer is near its threshold."""
    sigma = np.random.default_rng(step).uniform(0.1, 0.8, LAYERS).astype(np.float32)
    sigma[step % 10 :: 10] = 0.95
    return np.stack([sigma, np.ones(LAYERS, np.float32)])


@pytest.fixture
def ledger():
    with serving(Ledger()) as ledger:
        ledger.tables[TABLE.hash] = TABLE
        yield ledger


def full(ledger, root, steps: int) -> Sender:
    """Return a sender whose spool had to give up values: the service was away."""
    ledger.before = lambda _: Reply(503, b"{}")
    out = Sender(
        ledger.url,
        table=TABLE,
        metrics=METRICS,
        run="r",
        spool=root,
        spool_bytes=100_000,
        pace=PACE,
    )
    for step in range(steps):
        out.put(step, values(step), {"loss": step / 2}, 1.0)
        if step % 50 == 49:
            time.sleep(0.01)  # to the disk
    deadline = time.monotonic() + 30
    while out.dropped_values == 0 or threads_are_busy(root, out):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return out


def threads_are_busy(root, out: Sender) -> bool:
    before = out.dropped_values
    time.sleep(0.2)
    return out.dropped_values != before


def test_active_layers_outlive_the_others_and_every_value_is_accounted_for(ledger, tmp_path):
    out = full(ledger, tmp_path, 500)
    ledger.before = lambda _: None
    out.close(30)
    rows = {step: got for (_, step), (got, _) in ledger.rows("r").items()}
    assert min(rows) == 0, "the oldest step is still there, if not all of it"
    assert sorted(rows) == list(range(500))
    inactive_there = []
    for step, got in sorted(rows.items()):
        wanted, active = values(step), values(step)[0] >= 0.9
        assert got[:, active].tobytes() == wanted[:, active].tobytes()
        whole = got.tobytes() == wanted.tobytes()
        assert whole or absent(got[:, ~active]).all()
        inactive_there.append(whole)
    assert inactive_there == sorted(inactive_there), "newer inactive values went before older ones"
    assert 0 < sum(inactive_there) < 500
    assert all(
        scalars == {"loss": step / 2} for (_, step), (_, scalars) in ledger.rows("r").items()
    )
    carried = sum(np.count_nonzero(~absent(got)) for got in rows.values()) + 500
    assert carried == out.sent_values
    assert out.sent_values + out.dropped_values == 500 * PER_ROW
    assert sum(batch.dropped for batch in ledger.batches["r"]) == out.dropped_values


def test_a_batch_under_way_is_the_same_bytes_after_the_spool_was_full(ledger, tmp_path):
    reached = threading.Event()
    hold = threading.Event()

    def unanswered(seen):
        if seen.path.endswith("/batches"):
            reached.set()
            hold.wait(30)
        return None

    ledger.after = unanswered
    out = Sender(
        ledger.url, table=TABLE, metrics=METRICS, run="r", spool=tmp_path, spool_bytes=60_000,
        pace=Pace(linger_seconds=0.0, first_backoff_seconds=0.01, max_backoff_seconds=0.03),
    )  # fmt: skip
    out.put(0, values(0), {"loss": 0.0}, 1.0)
    assert reached.wait(30)
    for step in range(1, 500):
        out.put(step, values(step), {"loss": step / 2}, 1.0)
        if step % 50 == 49:
            time.sleep(0.05)
    ledger.after = lambda _: None
    hold.set()
    out.close(30)
    assert [batch.seq for batch in ledger.batches["r"]] == list(range(len(ledger.batches["r"])))
    rows = ledger.rows("r")
    assert rows[0, 0][0].tobytes() == values(0).tobytes()
    assert out.sent_values + out.dropped_values == 500 * PER_ROW
