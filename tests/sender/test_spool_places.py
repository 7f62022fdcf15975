"""A spool that is not alone or not welcome: full and read-only disks, shared folders, workers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from ledger import Ledger, Reply
from listeners import until
from sending import PER_ROW, put, sender
from small_disk import small_disk

from snc_client.sender.spool_replay import replay

JOB = """
    import sys, torch
    from snc_client import SNCallback

    class Data(torch.utils.data.Dataset):
        def __init__(self, callback): self.callback = callback
        def __len__(self): return 40
        def __getitem__(self, i): return torch.randn(8)

    def main():
        url, root = sys.argv[1:]
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        callback = SNCallback(model, url=url, run="r", spool=root)
        loader = torch.utils.data.DataLoader(
            Data(None), batch_size=4, num_workers=1, multiprocessing_context="spawn")
        for batch in loader:
            loss = model(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss.detach())
        callback.close()
        assert callback.errors == 0, callback.last_error

    if __name__ == "__main__":
        main()
"""


def steps_of(ledger: Ledger) -> list[int]:
    rows = ledger.rows("r")
    assert sum(len(batch.steps) for batch in ledger.batches["r"]) == len(rows), "something twice"
    return sorted(step for _, step in rows)


def test_spawned_workers_of_a_loader_leave_the_spool_to_the_job(ledger, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB))
    spool = tmp_path / "spool"
    done = subprocess.run(
        [sys.executable, str(script), ledger.url, str(spool)],
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert steps_of(ledger) == list(range(11))  # the weights at the start, and after each step
    assert len({batch.writer for batch in ledger.batches["r"]}) == 1
    assert len(ledger.posted("/finish")) == 1
    assert list(spool.iterdir()) == []


def test_a_disk_that_fills_up_costs_nothing_while_memory_lasts(ledger, tmp_path):
    ledger.before = lambda _: Reply(503, b"{}")
    with small_disk(tmp_path / "disk", 1) as disk:
        out = sender(ledger.url, run="r", spool=disk.folder)
        put(out, 0)
        until(lambda: any(disk.folder.glob("r.*/*.log")))
        disk.fill()
        put(out, *range(1, 2_000))
        until(lambda: out.errors)
        ledger.before = lambda _: None
        out.close(60)
        assert out.dropped_values == 0
        assert steps_of(ledger) == list(range(2_000))
        disk.release()


def test_a_disk_that_is_read_only_is_refused_before_the_training_begins(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        disk.protect()
        with pytest.raises(ValueError, match="spool must be a folder that can be written"):
            sender("http://127.0.0.1:1", spool=disk.folder)


def test_two_jobs_that_share_a_folder_and_a_run_lose_and_double_nothing(ledger, tmp_path):
    ledger.before = lambda _: Reply(503, b"{}")
    first = sender(ledger.url, run="r", spool=tmp_path)
    second = sender(ledger.url, run="r", spool=tmp_path)
    put(first, *range(100))
    put(second, *range(100, 200))
    first.close(0.1)
    second.close(0.1)
    assert first.sent_values + second.sent_values == 0
    ledger.before = lambda _: None
    replayed = replay(tmp_path, ledger.url)
    assert sum(each.sent_values for each in replayed) == 200 * PER_ROW
    assert steps_of(ledger) == list(range(200))
    assert list(tmp_path.iterdir()) == []
