"""The spool: what was handed over survives the service, the process and a torn end of the log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import Ledger, Reply, serving

from snc_client.sender import Pace, Sender
from snc_client.sender.job_spec import described
from snc_client.sender.queue.spool_directory import new_folder
from snc_client.sender.spool_replay import replay
from snc_client.spool import Spool, SpoolBusy
from snc_service.wire import ABSENT, LayerTable, decode

ROOMY = 2**30
TABLE = LayerTable.of_names(["a", "b"])
QUICK = Pace(
    linger_seconds=0.01,
    first_backoff_seconds=0.01,
    max_backoff_seconds=0.03,
    slow_retry_seconds=0.03,
)


def entry(i: int) -> tuple[bytes, int]:
    return f"entry {i} ".encode() * (1 + i % 7), 10 + i


def read_all(spool: Spool) -> list[bytes]:
    return [payload for _, payload in iter(spool.next, None)]


def filled(folder: Path, count: int, **keywords) -> list[bytes]:
    spool = Spool(folder, **{"max_bytes": ROOMY, "segment_bytes": 400, **keywords})
    for i in range(count):
        spool.append([entry(i)])
    spool.close()
    return [entry(i)[0] for i in range(count)]


class TestLog:
    def test_entries_come_back_in_order_over_segments_and_processes(self, tmp_path):
        written = filled(tmp_path, 50)
        spool = Spool(tmp_path, max_bytes=ROOMY, segment_bytes=400)
        assert len(list(tmp_path.glob("*.log"))) > 3
        assert (len(spool), spool.unread_weight) == (50, sum(10 + i for i in range(50)))
        spool.append([entry(50), entry(51)])
        assert read_all(spool) == [*written, entry(50)[0], entry(51)[0]]
        assert (len(spool), spool.unread_weight, spool.position) == (0, 0, 52)

    def test_reading_follows_writing_within_one_process(self, tmp_path):
        spool = Spool(tmp_path, max_bytes=ROOMY, segment_bytes=200)
        for i in range(30):
            assert spool.next() is None
            spool.append([entry(i)])
            assert spool.next() == (i, entry(i)[0])

    def test_the_newest_note_is_the_state_and_outlives_its_segment(self, tmp_path):
        spool = Spool(tmp_path, max_bytes=ROOMY, segment_bytes=200)
        for i in range(30):
            spool.append([entry(i)])
            spool.set_note(f"note {i}".encode())
        spool.forget(28)
        spool.close()
        assert Spool(tmp_path, max_bytes=ROOMY).note == b"note 29"

    def test_forgotten_entries_free_their_segments_and_numbers_go_on(self, tmp_path):
        spool = Spool(tmp_path, max_bytes=ROOMY, segment_bytes=200)
        for i in range(30):
            spool.append([entry(i)])
        before = spool.num_bytes
        spool.forget(20)
        assert spool.num_bytes < before / 2
        assert 10 < spool.first <= 20
        spool.close()
        again = Spool(tmp_path, max_bytes=ROOMY)
        first = again.first
        assert first == spool.first
        assert read_all(again) == [entry(i)[0] for i in range(first, 30)]

    @settings(max_examples=60, deadline=None)
    @given(cut=st.integers(0, 400), after=st.booleans())
    def test_a_torn_tail_costs_what_was_torn_and_nothing_else(self, tmp_path_factory, cut, after):
        folder = tmp_path_factory.mktemp("torn")
        written = filled(folder, 12)
        last = sorted(folder.glob("*.log"))[-1]
        os.truncate(last, max(last.stat().st_size - cut, 0))
        spool = Spool(folder, max_bytes=ROOMY, segment_bytes=400)
        if after:
            spool.append([entry(99)])
        found = read_all(spool)
        if after:
            assert found.pop() == entry(99)[0]
        assert found == written[: len(found)]
        # Only records of the last segment, which the cut reached, are missing.
        lost = sum(len(text) + 13 for text in written[len(found) :])
        assert lost <= cut + 13 + max(map(len, written))
        spool.close()

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_a_flipped_bit_ends_its_segment_only(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("flipped")
        written = filled(folder, 40)
        segments = sorted(folder.glob("*.log"))
        victim = data.draw(st.sampled_from(segments))
        bytes_ = bytearray(victim.read_bytes())
        at = data.draw(st.integers(0, len(bytes_) - 1))
        bytes_[at] ^= 1 << data.draw(st.integers(0, 7))
        victim.write_bytes(bytes_)
        spool = Spool(folder, max_bytes=ROOMY, segment_bytes=400)
        found = read_all(spool)
        spool.close()
        assert [text for text in written if text in found] == found
        others = b"".join(path.read_bytes() for path in segments if path != victim)
        elsewhere = [text for i, text in enumerate(written) if f"entry {i} ".encode() in others]
        assert set(elsewhere) <= set(found)
        assert len(elsewhere) >= 20

    @given(junk=st.binary(max_size=300))
    @settings(max_examples=60, deadline=None)
    def test_no_content_of_a_segment_makes_it_unreadable(self, tmp_path_factory, junk):
        folder = tmp_path_factory.mktemp("junk")
        (folder / "000000000000.log").write_bytes(junk)
        spool = Spool(folder, max_bytes=ROOMY)
        spool.append([entry(1)])
        assert read_all(spool)[-1] == entry(1)[0]
        spool.close()

    def test_past_the_bound_the_oldest_go_and_are_counted(self, tmp_path):
        spool = Spool(tmp_path, max_bytes=4_000)
        for i in range(500):
            spool.append([entry(i)])
            assert spool.num_bytes <= 4_000
        assert sum(path.stat().st_size for path in tmp_path.glob("*.log")) == spool.num_bytes
        kept = read_all(spool)
        assert kept == [entry(i)[0] for i in range(500 - len(kept), 500)]
        assert len(kept) > 20
        assert spool.dropped_weight == sum(10 + i for i in range(500 - len(kept)))

    def test_what_was_read_before_it_went_is_not_counted_as_dropped(self, tmp_path):
        spool = Spool(tmp_path, max_bytes=4_000)
        for i in range(500):
            spool.append([entry(i)])
            spool.next()
        assert spool.dropped_weight == 0

    def test_one_folder_is_for_one_at_a_time(self, tmp_path):
        spool = Spool(tmp_path, max_bytes=ROOMY)
        with pytest.raises(SpoolBusy, match="in use"):
            Spool(tmp_path, max_bytes=ROOMY)
        spool.close()
        Spool(tmp_path, max_bytes=ROOMY).close()

    def test_a_worker_forked_from_the_job_does_not_keep_the_folder(self, tmp_path):
        done = run(
            f"""
            import os, time, warnings
            from pathlib import Path
            from snc_client.spool import Spool
            warnings.simplefilter("ignore", DeprecationWarning)
            spool = Spool(Path({str(tmp_path)!r}), max_bytes=2**30)
            if os.fork() == 0:
                os.closerange(0, 3)
                time.sleep(30)
            os.kill(os.getpid(), 9)
            """
        )
        assert done.returncode == -signal.SIGKILL
        Spool(tmp_path, max_bytes=ROOMY).close()

    def test_kill_9_loses_nothing_that_was_appended(self, tmp_path):
        code = f"""
            from pathlib import Path
            from snc_client.spool import Spool
            spool = Spool(Path({str(tmp_path)!r}), max_bytes=2**30, segment_bytes=4_000)
            for i in range(10**9):
                spool.append([(b"entry %d" % i, 1)])
                print(i, flush=True)
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if int(line) >= 500:
                    process.kill()
                    break
            told = [int(line) for line in process.stdout if line.endswith("\n")]
        last = told[-1] if told else 500
        found = read_all(Spool(tmp_path, max_bytes=ROOMY))
        assert found[: last + 1] == [b"entry %d" % i for i in range(last + 1)]
        assert len(found) - (last + 1) in (0, 1)

    def test_a_disk_that_refuses_leaves_the_log_whole_and_is_tried_again(self, tmp_path):
        done = run(
            f"""
            import resource
            from pathlib import Path
            from snc_client.spool import Spool
            spool = Spool(Path({str(tmp_path)!r}), max_bytes=2**30)
            spool.append([(b"before", 1)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            try:
                spool.append([(b"small", 1), (b"x" * 1_000, 1)])
            except OSError as error:
                print(type(error).__name__)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            spool.append([(b"after", 1)])
            print(list(iter(spool.next, None)))
            spool.close()
            """
        )
        assert done.stdout.split("\n")[:2] == ["OSError", "[(0, b'before'), (1, b'after')]"], done
        assert read_all(Spool(tmp_path, max_bytes=ROOMY)) == [b"before", b"after"]


def run(code: str, **keywords) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        **keywords,
    )


@pytest.fixture
def ledger():
    with serving(Ledger()) as ledger:
        ledger.tables[TABLE.hash] = TABLE
        yield ledger


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def rows_in_logs(root: Path) -> int:
    return sum(log.read_bytes().count(b'"loss"') for log in root.glob("*/*.log"))


def sender(url: str, root: Path, **keywords) -> Sender:
    return Sender(
        url, **{"table": TABLE, "metrics": ("sigma",), "pace": QUICK, "spool": root, **keywords}
    )


def values(step: int) -> np.ndarray:
    return np.array([[step + 0.5, ABSENT if step % 3 else np.nan]], np.float32)


def put(out: Sender, steps, **scalars: float) -> None:
    for step in steps:
        out.put(step, values(step), {"loss": float("nan"), **scalars}, 1_763_800_000.0 + step)


def arrived(ledger: Ledger, run: str) -> list[tuple[int, int]]:
    """Return (attempt, step) of what arrived, after comparing each value."""
    rows = ledger.rows(run)
    for (_, step), (got, scalars) in rows.items():
        assert got.tobytes() == values(step).tobytes()
        assert np.isnan(scalars["loss"])
    assert sum(len(batch.steps) for batch in ledger.batches[run]) == len(rows), "something twice"
    return list(rows)


JOB = """
    import os, sys, time
    from pathlib import Path
    import numpy as np
    from snc_client.sender import Pace, Sender
    from snc_service.wire import ABSENT, LayerTable
    out = Sender({url!r}, run="r", table=LayerTable.of_names(["a", "b"]), metrics=("sigma",),
                 spool={root!r}, pace=Pace(linger_seconds=0.01, first_backoff_seconds=0.01,
                                           max_backoff_seconds=0.03))
    def put(step):
        values = np.array([[step + 0.5, ABSENT if step % 3 else np.nan]], np.float32)
        out.put(step, values, {{"loss": float("nan")}}, 1_763_800_000.0 + step)
    def written(count):
        logs = Path({root!r})
        while sum(log.read_bytes().count(b'"loss"') for log in logs.glob("r.*/*.log")) < count:
            time.sleep(0.01)
    def die():
        os.kill(os.getpid(), 9)
"""


def job(url: str, root: Path, code: str) -> subprocess.CompletedProcess[str]:
    return run(textwrap.dedent(JOB.format(url=url, root=str(root))) + textwrap.dedent(code))


class TestSender:
    def test_everything_arrives_once_and_the_folder_is_empty_then(self, ledger, tmp_path):
        out = sender(ledger.url, tmp_path)
        put(out, range(300))
        out.close(30)
        assert arrived(ledger, out.run) == [(0, step) for step in range(300)]
        assert (out.sent_values, out.dropped_values) == (900, 0)
        assert list(tmp_path.iterdir()) == []
        assert ledger.ends == {out.run: "finished"}

    def test_a_service_away_for_longer_than_memory_lasts_costs_nothing(self, ledger, tmp_path):
        gate = threading.Event()
        ledger.before = lambda _: None if gate.is_set() else Reply(503, b"{}")
        out = sender(ledger.url, tmp_path, queue_bytes=64 * 12)
        for start in range(0, 1_000, 50):
            put(out, range(start, start + 50))
            until(lambda: rows_in_logs(tmp_path) == start + 50)  # noqa: B023 # called at once
        assert out.sent_values == 0
        gate.set()
        out.close(30)
        assert arrived(ledger, out.run) == [(0, step) for step in range(1_000)]
        assert out.dropped_values == 0

    def test_what_is_acknowledged_is_not_sent_again(self, ledger, tmp_path):
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(10))
        until(lambda: out.sent_values == 30)
        ledger.before = lambda _: Reply(503, b"{}")
        put(out, range(10, 20))
        out.close(0.1)
        assert rows_in_logs(tmp_path) == 20
        ledger.before = lambda _: None
        (done,) = replay(tmp_path, ledger.url)
        assert done.sent_values == 30
        assert arrived(ledger, "r") == [(0, step) for step in range(20)]

    def test_what_is_sent_and_its_number_are_on_the_disk_before(
        self, ledger, tmp_path, monkeypatch
    ):
        synced = []

        def fsync(file: int) -> None:
            real(file)
            synced.append(b"".join(log.read_bytes() for log in sorted(tmp_path.glob("*/*.log"))))

        def look(seen):
            if seen.path.endswith("/batches"):
                batch = decode(seen.body)
                assert synced[-1].count(b'"loss"') >= batch.steps[-1] + 1
                assert b'"packed": %d, "seq": %d' % (len(batch.steps), batch.seq) in synced[-1]
                looked.append(batch.seq)

        looked: list[int] = []
        real = os.fsync
        monkeypatch.setattr("os.fsync", fsync)
        ledger.before = look
        out = sender(ledger.url, tmp_path)
        for start in range(0, 60, 20):
            put(out, range(start, start + 20))
            until(lambda: out.sent_values == 3 * (start + 20))  # noqa: B023 # called at once
        out.close(30)
        assert len(arrived(ledger, out.run)) == 60
        assert len(set(looked)) >= 3

    def test_what_is_acknowledged_frees_the_disk(self, ledger, tmp_path):
        out = sender(ledger.url, tmp_path, run="r", spool_bytes=20_000)
        for start in range(0, 1_000, 50):
            put(out, range(start, start + 50))
            until(lambda: out.sent_values == 3 * (start + 50))  # noqa: B023 # called at once
        assert out.dropped_values == 0
        until(lambda: rows_in_logs(tmp_path) < 150)
        out.close(30)
        assert arrived(ledger, "r") == [(0, step) for step in range(1_000)]

    def test_a_job_that_ends_without_a_service_leaves_its_rows_for_replay(
        self, ledger, tmp_path, caplog
    ):
        ledger.before = lambda _: Reply(503, b"{}")
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(100))
        out.close(0.2, state="failed")
        assert (out.sent_values, out.dropped_values) == (0, 0)
        assert "300 values wait in the spool" in caplog.text
        ledger.before = lambda _: None
        (done,) = replay(tmp_path, ledger.url)
        assert (done.run, done.sent_values, done.kept_values) == ("r", 300, 0)
        assert arrived(ledger, "r") == [(0, step) for step in range(100)]
        assert ledger.ends == {"r": "failed"}
        assert list(tmp_path.iterdir()) == []
        assert replay(tmp_path, ledger.url) == []

    def test_replay_without_a_service_keeps_everything(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(10))
        out.close(0.1)
        for _ in range(2):
            (done,) = replay(tmp_path, ledger.url, timeout=0.1)
            assert (done.sent_values, done.kept_values, done.dropped_values) == (0, 30, 0)
        ledger.before = lambda _: None
        assert replay(tmp_path, ledger.url)[0].sent_values == 30
        assert ledger.ends == {"r": "finished"}

    def test_kill_9_of_the_job_loses_nothing_that_reached_the_log(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        done = job(ledger.url, tmp_path, "for step in range(200): put(step)\nwritten(200)\ndie()")
        assert done.returncode == -signal.SIGKILL, done.stderr
        ledger.before = lambda _: None
        # The next process of the run sends the old steps first, then its own.
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(200, 220))
        out.close(30)
        assert arrived(ledger, "r") == [(0, step) for step in range(220)]
        assert len({batch.writer for batch in ledger.batches["r"]}) == 2

    def test_the_batch_under_way_at_kill_9_is_sent_again_as_the_same_bytes(self, ledger, tmp_path):
        ledger.after = lambda seen: (
            seen.path.endswith("/batches") and threading.Event().wait(60) and None
        )
        code = """
            put(0)
            sys.stdin.readline()
            for step in range(1, 50): put(step)
            written(50)
            print("written", flush=True)
            sys.stdin.read()
        """
        text = textwrap.dedent(JOB.format(url=ledger.url, root=str(tmp_path)))
        with subprocess.Popen(
            [sys.executable, "-c", text + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            ledger.until(lambda: ledger.num_batches == 1)  # stored, and never acknowledged
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"
            process.kill()
        ledger.after = lambda _: None
        (done,) = replay(tmp_path, ledger.url)
        assert done.dropped_values == 0
        first, second, *_ = ledger.posted("/batches")
        assert first.body == second.body
        assert arrived(ledger, "r") == [(0, step) for step in range(50)]
        assert done.sent_values == 150

    def test_a_resumed_job_after_kill_9_starts_an_attempt(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        job(ledger.url, tmp_path, "for step in range(10): put(step)\nwritten(10)\ndie()")
        ledger.before = lambda _: None
        ledger.follow = True
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(5, 12))
        out.close(30)
        assert arrived(ledger, "r") == [
            *((0, step) for step in range(10)),
            *((1, step) for step in range(5, 12)),
        ]

    def test_what_another_run_left_is_sent_beside(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        old = sender(ledger.url, tmp_path, run="old")
        put(old, range(20))
        old.close(0.1)
        ledger.before = lambda _: None
        new = sender(ledger.url, tmp_path, run="new")
        ledger.until(lambda: "old" in ledger.ends)
        put(new, range(5))
        new.close(30)
        assert arrived(ledger, "old") == [(0, step) for step in range(20)]
        assert arrived(ledger, "new") == [(0, step) for step in range(5)]

    def test_folders_of_a_run_sort_by_age_although_the_clock_went_back(self, tmp_path, monkeypatch):
        job = described(
            "http://127.0.0.1:1", table=TABLE, metrics=("sigma",), run="a.b", name=None,
            project=None, config=None, policy=None,
        )  # fmt: skip
        made = []
        for now in (2_000, 1_000, 1_500, 3_000):
            monkeypatch.setattr("time.time_ns", lambda now=now: now)
            made.append(new_folder(tmp_path, job))
            made[-1].mkdir()
            (tmp_path / f"a.{now}.strange").mkdir()
        assert made == sorted(made)
        assert all(path.name.startswith("a.b.") for path in made)

    def test_the_folder_of_a_running_job_is_left_alone(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        out = sender(ledger.url, tmp_path)
        put(out, range(5))
        until(lambda: list(tmp_path.glob("*/job.json")))
        assert replay(tmp_path, ledger.url, timeout=0.1) == []
        ledger.before = lambda _: None
        out.close(30)
        assert len(arrived(ledger, out.run)) == 5

    def test_past_its_bound_the_spool_drops_the_oldest_and_says_so(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        out = sender(ledger.url, tmp_path, spool_bytes=20_000)
        for start in range(0, 1_000, 50):
            put(out, range(start, start + 50))

        def all_is_in_the_spool() -> bool:
            before = out.dropped_values
            time.sleep(1)  # what is still on its way would drop rows behind those that are sent
            return 0 < before == out.dropped_values

        until(all_is_in_the_spool)
        ledger.before = lambda _: None
        out.close(30)
        steps = [step for _, step in arrived(ledger, out.run)]
        assert steps == list(range(1_000 - len(steps), 1_000))
        assert out.dropped_values == 3 * (1_000 - len(steps))
        assert sum(batch.dropped for batch in ledger.batches[out.run]) == out.dropped_values

    def test_a_disk_that_refuses_costs_nothing_while_memory_lasts(self, ledger, tmp_path):
        done = job(
            ledger.url,
            tmp_path,
            """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
            for step in range(100): put(step)
            out.close(30)
            assert out.dropped_values == 0
            """,
        )
        assert done.returncode == 0, done.stderr
        assert "the spool takes no rows" in done.stderr
        assert arrived(ledger, "r") == [(0, step) for step in range(100)]

    def test_a_spool_that_drops_and_is_replayed_sends_nothing_twice(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        out = sender(ledger.url, tmp_path, run="r", spool_bytes=20_000, queue_bytes=2**20)
        put(out, range(500))
        until(lambda: out.dropped_values > 0)
        put(out, [1_000, 1_001])
        passes = [True]  # one batch gets through, then the service is away again
        ledger.before = lambda seen: (
            None
            if not seen.path.endswith("/batches") or (passes and passes.pop())
            else Reply(503, b"{}")
        )
        ledger.until(lambda: ledger.num_batches == 1)
        put(out, range(2_000, 2_100))
        out.close(0.1)
        ledger.before = lambda _: None
        replay(tmp_path, ledger.url)
        steps = [step for _, step in arrived(ledger, "r")]
        assert steps == sorted(set(steps))
        assert steps[-1] == 2_099

    def test_a_disk_that_is_full_at_the_start_is_used_once_it_has_room(self, ledger, tmp_path):
        done = job(
            ledger.url,
            tmp_path,
            """
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
            for step in range(10): put(step)
            time.sleep(0.3)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            for step in range(10, 20): put(step)
            written(10)
            out.close(30)
            assert out.dropped_values == 0
            """,
        )
        assert done.returncode == 0, done.stderr
        assert "the spool takes no rows" in done.stderr
        assert arrived(ledger, "r") == [(0, step) for step in range(20)]

    def test_rows_the_service_will_not_hear_of_do_not_hold_up_the_next_job(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        old = sender(ledger.url, tmp_path, run="r", table=LayerTable.of_names(["x", "y"]))
        put(old, range(10))
        old.close(0.1)
        ledger.before = lambda seen: Reply(422, b"{}") if b'"x"' in seen.body else None
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(10, 20))
        out.close(30)
        assert arrived(ledger, "r") == [(0, step) for step in range(10, 20)]
        ledger.before = lambda _: None
        replay(tmp_path, ledger.url)
        assert sorted(step for _, step in arrived(ledger, "r")) == list(range(20))

    def test_strange_things_in_the_folder_are_passed_over(self, ledger, tmp_path):
        for name, text in {
            "r.1.a": "{",
            "r.2.b": "[]",
            "r.3.c": '{"request": {"run": "../x"}, "metrics": [], "writer": 1}',
            "strange": "{}",
        }.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "job.json").write_text(text)
        (tmp_path / "file").write_text("?")
        out = sender(ledger.url, tmp_path, run="r")
        put(out, range(3))
        out.close(30)
        assert len(arrived(ledger, "r")) == 3

    def test_a_folder_that_cannot_be_made_is_refused_at_once(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="spool must be a folder"):
            sender("http://127.0.0.1:1", tmp_path / "file")

    def test_the_token_does_not_reach_the_disk(self, ledger, tmp_path):
        ledger.before = lambda _: Reply(503, b"{}")
        out = sender(ledger.url, tmp_path, token="s3cret")
        put(out, range(3))
        out.close(0.1)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 3
        assert not any(b"s3cret" in path.read_bytes() for path in files)
