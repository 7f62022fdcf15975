"""The projection in docs/sharded.md is what its script computes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_that_of_the_script() -> None:
    script = ROOT / "bench" / "sharded_projection.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 8
    assert done.stdout in (ROOT / "docs" / "sharded.md").read_text()
