"""``snc export``: the values of a run, in a file that appears only when complete."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Protocol

from snc_service.cli.failure import Failure
from snc_service.cli.output import clean, print_json
from snc_service.cli.service import ServiceClient

FORMATS = ("csv", "parquet")


class ExportProgress(Protocol):
    """A callback for each received chunk."""

    def __call__(self, num_bytes: int) -> None:
        """Count received bytes."""


def export(arguments: Namespace) -> int:
    """Write all values of a run, or the selected part."""
    form = arguments.format or _form_of(arguments.output)
    target = (
        None if arguments.output == "-" else Path(arguments.output or f"{arguments.run}.{form}")
    )
    query = {
        "format": form,
        "metric": arguments.metric or None,
        "layer": arguments.layer or None,
        "from_step": arguments.from_step,
        "to_step": arguments.to_step,
        "attempt": arguments.attempt,
    }
    with ServiceClient.of(arguments) as service, _opened(target) as file, _progress(target) as told:
        num_bytes = 0
        for chunk in service.stream("runs", arguments.run, "export", **query):
            file.write(chunk)
            num_bytes += len(chunk)
            told(len(chunk))
    if target is not None and arguments.json:
        print_json({"file": str(target), "format": form, "bytes": num_bytes})
    elif target is not None:
        print(clean(f"{target}: {num_bytes} bytes of {form}"))
    return 0


def _form_of(output: str | None) -> str:
    suffix = Path(output or "").suffix.removeprefix(".").lower()
    return suffix if suffix in FORMATS else FORMATS[0]


@contextmanager
def _opened(target: Path | None) -> Iterator[IO[bytes]]:
    """Open standard output, or a file that gets its name when the block has succeeded."""
    if target is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, target)
    except OSError as error:
        raise Failure(f"{target} cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _progress(target: Path | None) -> AbstractContextManager[ExportProgress]:
    """Show the received bytes on a terminal; the total is unknown."""
    if target is None or not sys.stderr.isatty():
        return nullcontext(lambda num_bytes: None)
    return _bar(target.name)


@contextmanager
def _bar(name: str) -> Iterator[ExportProgress]:
    try:
        from rich import progress
        from rich.console import Console
        from rich.text import Text
    except ModuleNotFoundError:
        yield lambda num_bytes: None
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(Text(clean(name)).markup, total=None)
        yield lambda num_bytes: bar.advance(task, num_bytes)
