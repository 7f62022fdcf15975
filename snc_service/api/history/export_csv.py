"""Export as CSV: a line per value, with numbers that parse to the same float32.

A text cell is quoted. What a spreadsheet would take for a formula gets an apostrophe in front, at
the beginning of a cell and behind every separator in it: who opens the file with semicolons between
cells sees other cells than were written, and quotes do not hold them together. Take one apostrophe
off the front and off behind each separator to get the name back. Numbers are never touched, a
negative one stays a number. What is not finite is ``nan``, ``inf`` or ``-inf``: CSV cannot say
which NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from snc_service.api.conventions.answers import shortest
from snc_service.store.types import Piece
from snc_service.wire import absent

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
HEADER = b"run,attempt,metric,layer,step,value\r\n"
LINES_AT_ONCE = 32_768  # a quarter of a second in which other threads only get their turns
# Where a cell begins under any separator that spreadsheets offer, or a line in any reader; and what
# they take for the beginning of a formula, wide forms too, and our own mark.
_FORMULA = re.compile(
    r"(^|[,;|:\t\u2028\u2029])(?=\s*[=+@\t\r\-"
    "\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}"
    "\N{FULLWIDTH COMMERCIAL AT}]|')"
)


def csv_chunks(run: str, pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Yield the file in chunks of at most `LINES_AT_ONCE` lines."""
    yield HEADER
    for piece in pieces:
        for row in range(len(piece.values)):
            layer = "" if piece.layers is None else cell(piece.layers[row])
            head = f"{cell(run)},{piece.attempt},{cell(piece.metric)},{layer},"
            there = np.flatnonzero(~absent(piece.values[row]))
            for start in range(0, len(there), LINES_AT_ONCE):
                at = there[start : start + LINES_AT_ONCE]
                some = piece.values[row, at]
                some[np.isnan(some)] = np.nan  # converting a signalling NaN would warn
                numbers = map(repr, shortest(some))
                steps = map(str, piece.steps[at].tolist())
                lines = map(",".join, zip(steps, numbers, strict=True))
                yield (head + f"\r\n{head}".join(lines) + "\r\n").encode()


def cell(text: str) -> str:
    """Return a quoted text cell that no spreadsheet reads as a formula."""
    return '"' + _FORMULA.sub(r"\1'", text).replace('"', '""') + '"'
