"""``snc replay DIR``: send the rows that ended jobs left in a spool, and report the result."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from snc_client.sender.spool_replay import Replayed, replay

URL = "http://127.0.0.1:8470"


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a spool; return 0 when nothing is left in it, else 1."""
    asked = _parser().parse_args(arguments)
    try:
        if not asked.folder.is_dir():
            raise ValueError(f"DIR must be the folder of a spool, got {str(asked.folder)!r}")
        token = os.environ.get("SNC_TOKEN")
        done = replay(asked.folder, asked.url, token=token, timeout=asked.timeout)
    except ValueError as error:
        sys.stderr.write(f"snc replay: {error}\n")
        return 1
    text = json.dumps([asdict(one) for one in done], indent=2) if asked.json else _text(done)
    sys.stdout.write(text + "\n")
    return 1 if any(one.kept_values for one in done) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="snc replay",
        description="Send what ended jobs left in a spool. The token is read from SNC_TOKEN.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the spool of the jobs")
    parser.add_argument("--url", default=os.environ.get("SNC_URL") or URL, help="the service")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to try (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _text(done: Sequence[Replayed]) -> str:
    if not done:
        return "nothing to send: no ended job left rows here"
    return "\n".join(
        f"run {one.run}: {one.sent_values} values sent, {one.kept_values} still in the spool, "
        f"{one.dropped_values} lost" + (f" ({one.last_error})" if one.kept_values else "")
        for one in done
    )


if __name__ == "__main__":
    sys.exit(main())
