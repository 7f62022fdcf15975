"""A spool's root: one folder per process of a job, with its log and the description of the job."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from snc_client.sender.job_spec import Job
from snc_client.sender.queue.spool_codec import thinned
from snc_client.spool import Spool, SpoolBusy
from snc_service.wire import METRIC_NAME, RUN_NAME, LayerTable, WireError


def new_folder(root: Path, job: Job) -> Path:
    """Return a new folder for a job's log: the folders of one run sort by their age.

    They do so even if the clock went back since the last one was made.
    """
    ages = [_age(path) for path in root.iterdir() if path.name.startswith(f"{job.run}.")]
    age = max(time.time_ns(), max(ages, default=0) + 1)
    return root / f"{job.run}.{age:019d}.{job.writer[:8]}"


def _age(folder: Path) -> int:
    """Return the number that orders a run's folders; 0 for a name of another form."""
    *_, age, _ = ("", "", *folder.name.rsplit(".", 2))
    return int(age) if age.isdecimal() and len(age) == 19 else 0


def create(folder: Path, job: Job, max_bytes: int) -> Spool:
    """Open a new log and describe its job. Raises `OSError`. The token is not written."""
    spare = partial(thinned, shape=job.shape, metrics=job.metrics)
    spool = Spool(folder, max_bytes=max_bytes, spare=spare)
    about = {"writer": job.writer, "metrics": job.metrics, "request": dict(job.request)}
    try:
        _write(folder / "layers.json", job.table.body)
        _write(folder / "job.json", json.dumps(about).encode())
    except OSError:
        spool.close()  # unlocks the folder for the next try
        raise
    return spool


def left_behind(
    root: Path, max_bytes: int, wanted: Callable[[str], bool]
) -> Iterator[tuple[Job, Spool]]:
    """Yield the jobs whose process has ended, oldest first for each run, their logs locked.

    Only runs that are ``wanted``. A folder in use is skipped, and so is one without a job.
    """
    for folder in sorted(path.parent for path in root.glob("*/job.json")):
        if not wanted(folder.name.rsplit(".", 2)[0]):
            continue
        try:
            spool = Spool(folder, max_bytes=max_bytes)
        except (SpoolBusy, OSError):
            continue
        try:
            job = _read(folder)
        except (OSError, ValueError, KeyError, TypeError):
            spool.close()
            continue
        yield job, spool


def remove(folder: Path) -> None:
    """Delete the folder and the files of `create`, after the log is removed."""
    for name in ("job.json", "layers.json", "lock"):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def _write(path: Path, data: bytes) -> None:
    """Write the whole file or none of it."""
    partial = path.with_suffix(".part")
    partial.write_bytes(data)
    os.replace(partial, path)


def _read(folder: Path) -> Job:
    """Read the files of `create`; invalid content raises the error of its parser."""
    about: Any = json.loads((folder / "job.json").read_bytes())
    request, metrics, writer = dict(about["request"]), tuple(about["metrics"]), about["writer"]
    if not RUN_NAME.fullmatch(request["run"]) or not all(map(METRIC_NAME.fullmatch, metrics)):
        raise WireError("job.json", "must name a run and its metrics")
    return Job(
        url="",
        run=request["run"],
        writer=str(writer),
        table=LayerTable.parse((folder / "layers.json").read_bytes()),
        metrics=metrics,
        request=request,
    )
