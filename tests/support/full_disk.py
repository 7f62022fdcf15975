"""What a store does on a full disk, killed at each of its statements.

    python full_disk.py FOLDER [STRIDE [KIND ...]]

For each kind of work, a store is laid on a tmpfs with 8 KB left. A child does the work and is
killed with -9 before its n-th writing statement, for n = 1, 1 + STRIDE, ... until it ends by
itself. Then another child starts the store on the same full disk, and insists that

* it starts, and every value of the runs that must be there is read as it was stored;
* what the first child said was done is done, and what it said was refused is not;
* deleting a run works, and makes the files smaller.

Prints a line per kind: how many rounds, how many were killed, refused and done.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from store_cases import NOW, as_sent, batch, breach_once, new_run, stored, table

from snc_service.store import Store, open_store
from snc_service.store.types import RunUnknown, StoreFull, Window
from snc_service.store.types.records import Token

LAYERS = table(*(f"l{i}" for i in range(60)))
LEFT_BYTES = 8_192
STEPS = 256


def fill(store: Store) -> None:
    """Store an old run that has ended, in tiles, and a live one, in the tail."""
    for run in ("old", "live"):
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)
    for seq in range(6):
        for run in ("old", "live"):
            stored(store, one(run, seq), run=run, advance=breach_once)
        if seq == 4:
            while store.fold(1, now=NOW):
                pass
    store.runs.finish("old", "finished", NOW)


def one(run: str, seq: int):
    """Return batch ``seq`` of a run."""
    values = np.random.default_rng([seq, len(run)]).random((2, STEPS, 60), np.float32)
    metrics = dict(zip(("sigma", "threshold"), values, strict=True))
    return batch(LAYERS, seq, range(seq * STEPS, (seq + 1) * STEPS), metrics)


def thinned(store: Store) -> bool:
    """Return whether the old run lost its exact values, by design."""
    try:
        as_sent(store, "old", "sigma", LAYERS.names)
    except Exception as error:
        return type(error).__name__ == "HistoryThinned"
    return False


# What is done, and whether it is: each is true or false, never between.
WORK: dict[str, tuple[Callable[[Store], object], Callable[[Store], bool] | None]] = {
    "delete": (lambda s: s.runs.delete("old", now=NOW), lambda s: not there(s)),
    "retention": (lambda s: s.runs.prune(NOW + 1), lambda s: not there(s)),
    "thinning": (lambda s: s.runs.thin(NOW + 1, NOW), lambda s: thinned(s)),
    "folding": (lambda s: s.fold(5, now=NOW + 3_600), None),
    "a batch": (
        lambda s: stored(s, one("live", 6), run="live"),
        lambda s: s.runs.get("live").last_step == 7 * STEPS - 1,
    ),
    "alerts": (
        lambda s: s.incidents.gather(lambda *_: [], now=NOW, limit=100),
        lambda s: not s.incidents.work(NOW).outbox,
    ),
    "a token": (
        lambda s: s.tokens.add(Token("t", "new", "0" * 64, ("read",), None, "x", NOW, None, None)),
        lambda s: [token.name for token in s.tokens.all()] == ["new"],
    ),
}


def there(store: Store) -> bool:
    try:
        store.runs.get("old")
    except RunUnknown:
        return False
    return True


def forked(work: Callable[[], object]) -> tuple[int, object]:
    """Run ``work`` in a child; return its status (-9: killed) and what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            try:
                answer: object = work()
            except BaseException as error:
                answer = error
            with os.fdopen(write, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, pickle.loads(said) if said else None


def victim(url: str, kind: str, at: int) -> str:
    """Do the work; die before writing statement ``at``. Return what would have been answered."""
    left = at

    def count(statement: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with closing(open_store(url)) as store:
        store._database._writer.set_trace_callback(count)
        try:
            WORK[kind][0](store)
        except StoreFull:
            return "refused"
        return "done"


def checked(url: str, kind: str, said: object, bits: dict[str, bytes], size: int) -> None:
    """Start the store where the victim left it, and compare."""
    files = [Path(url.removeprefix("sqlite:///") + end) for end in ("", "-wal")]
    with closing(open_store(url)) as store:
        is_done = WORK[kind][1]
        if is_done is not None and said in ("done", "refused"):
            assert is_done(store) == (said == "done"), (kind, said)
        assert (
            as_sent(store, "live", "sigma", LAYERS.names)[1][:, : 6 * STEPS].tobytes()
            == (bits["live"])
        )
        if there(store) and not thinned(store):
            assert as_sent(store, "old", "sigma", LAYERS.names)[1].tobytes() == bits["old"]
        if there(store):
            coarse = store.histories.of_layers("old", "sigma", ["l7"], Window(points=40))
            assert coarse.steps[-1] >= 1_024
        assert store.damages.verify().damaged == ()
        if there(store):
            store.runs.delete("old", now=NOW)
        for _ in range(3):
            try:
                store.fold(1, now=NOW)
            except StoreFull:
                continue
        assert not there(store)
        left = sum(file.stat().st_size for file in files if file.exists())
        assert left < size, (left, size)


def rounds(kind: str, template: Path, disk: Path, bits: dict[str, bytes], stride: int) -> Counter:
    """Do one kind of work until it ends by itself; return what became of the rounds."""
    found: Counter[str] = Counter()
    url, at = f"sqlite:///{disk}/snc.db", 1
    whole = (template / "snc.db").stat().st_size
    while True:
        size = sum(-(-file.stat().st_size // 4_096) * 4_096 for file in template.iterdir())
        mounted(disk, size + LEFT_BYTES)
        try:
            for file in template.iterdir():
                shutil.copy(file, disk)
            status, said = forked(lambda at=at: victim(url, kind, at))
            assert status in (0, -9), status
            assert status or said in ("done", "refused"), (kind, at, said)
            _, wrong = forked(lambda said=said: checked(url, kind, said, bits, whole))
            if wrong is not None:
                raise AssertionError(f"{kind}, statement {at}, said {said}: {wrong!r}")
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        found["killed" if status else str(said)] += 1
        if status == 0:
            return found
        at += stride


def mounted(disk: Path, size: int) -> None:
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    subprocess.run(["mount", *options], check=True, capture_output=True)


def main() -> None:
    folder, stride = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    kinds = sys.argv[3:] or list(WORK)
    template, disk = folder / "template", folder / "disk"
    template.mkdir()
    disk.mkdir()
    bits = {}

    def made() -> dict[str, bytes]:
        with closing(open_store(f"sqlite:///{template}/snc.db")) as store:
            fill(store)
            for run in ("old", "live"):
                bits[run] = as_sent(store, run, "sigma", LAYERS.names)[1].tobytes()
        return bits

    _, bits = forked(made)
    assert isinstance(bits, dict), bits
    for kind in kinds:
        begun = time.monotonic()
        found = rounds(kind, template, disk, bits, stride)
        told = ", ".join(f"{number} {what}" for what, number in sorted(found.items()))
        took = time.monotonic() - begun
        sys.stdout.write(f"{kind}: {found.total()} rounds: {told} ({took:.0f} s)\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
