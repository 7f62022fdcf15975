"""``snc`` with a clock that a test can set: `python leaping_service.py FILE serve ...`.

Only this process's `time.time` moves, by the seconds that FILE holds; the machine's clock stays.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

_file, _real = Path(sys.argv.pop(1)), time.time


def _leapt() -> float:
    return _real() + float(_file.read_text() or 0)


if __name__ == "__main__":
    time.time = _leapt  # before anybody takes it for a default

    from snc_service.cli import main

    sys.exit(main())
