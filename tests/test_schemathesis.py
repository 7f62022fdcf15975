"""The schema by a fuzzer of others: what it describes, with all its checks, on a real process.

``make fuzz EXAMPLES=500 LOG=path`` makes it a long run; the suite's is a short one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import serving, snc

CONFIG = Path(__file__).with_name("schemathesis.toml")
COMMAND = Path(sys.executable).with_name("schemathesis")
EXAMPLES = int(os.environ.get("SNC_SCHEMATHESIS_EXAMPLES", "2"))


@pytest.mark.timeout(120 + 60 * EXAMPLES)
@pytest.mark.skipif(not COMMAND.exists(), reason="needs schemathesis: pip install 'snc[test]'")
def test_the_service_does_what_its_schema_says_and_nothing_else(tmp_path):
    store = f"sqlite:///{tmp_path / 'snc.db'}"
    made = snc("token", "create", "fuzzer-root", "--scope=admin", "--store", store)
    shutil.copy(CONFIG, tmp_path)
    with serving(tmp_path / "snc.db") as url:
        # A stream has no end: it has tests of its own.
        done = subprocess.run(
            [COMMAND, "--config-file", CONFIG.name, "run", f"{url}/openapi.json",
             "--header", f"Authorization: Bearer {made.stdout.strip()}",
             "--exclude-operation-id", "stream_run", "--max-examples", str(EXAMPLES),
             "--no-color"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    if "SNC_SCHEMATHESIS_LOG" in os.environ:
        said = f"make fuzz EXAMPLES={EXAMPLES}\n\n{done.stdout}"
        Path(os.environ["SNC_SCHEMATHESIS_LOG"]).write_text(said)
    assert done.returncode == 0, done.stdout[-8_000:]
    tested, generated = (re.search(rf"{what}", done.stdout) for what in
                         (r"Tested: (\d+)", r"(\d+) generated"))  # fmt: skip
    assert int(tested[1]) >= 40
    assert int(generated[1]) >= 1_000
