"""The schema by a fuzzer of others: what it describes, with all its checks, on a real process.

``make fuzz EXAMPLES=500 LOG=path`` makes it a long run; the suite's is a short one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from test_cli import serving, snc

CONFIG = Path(__file__).with_name("schemathesis.toml")
COMMAND = Path(sys.executable).with_name("schemathesis")
EXAMPLES = int(os.environ.get("SNC_SCHEMATHESIS_EXAMPLES", "2"))


def report(url: str, token: str) -> None:
    """Give the run of the schema's examples some values: questions about it have answers."""
    rows = {"sigma": [[1.0, 2.0]] * 3, "threshold": [[2.0, 2.5]] * 3}
    batch = {"writer": "w", "seq": 0, "steps": [1, 2, 3], "layers": ["fc1.weight", "fc2.weight"],
             "metrics": rows, "scalars": {"loss": [3.0, 2.0, 1.0]}}  # fmt: skip
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{url}/api/v1/", headers=headers) as http:
        http.post("runs", json={"run": "gpt-small-1", "project": "research"}).raise_for_status()
        http.post("runs/gpt-small-1/batches", json=batch).raise_for_status()


@pytest.mark.timeout(120 + 60 * EXAMPLES)
@pytest.mark.skipif(
    not COMMAND.exists(), reason="needs schemathesis: pip install 'spectral-norm-constraint[test]'"
)
def test_the_service_does_what_its_schema_says_and_nothing_else(tmp_path):
    store = f"sqlite:///{tmp_path / 'snc.db'}"
    made = snc("token", "create", "fuzzer-root", "--scope=admin", "--store", store)
    shutil.copy(CONFIG, tmp_path)
    with serving(tmp_path / "snc.db") as url:
        report(url, made.stdout.strip())
        # A stream has no end: it has tests of its own.
        done = subprocess.run(
            [COMMAND, "--config-file", CONFIG.name, "run", f"{url}/openapi.json",
             "--header", f"Authorization: Bearer {made.stdout.strip()}",
             "--exclude-operation-id", "stream_run", "--max-examples", str(EXAMPLES),
             "--no-color"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    if "SNC_SCHEMATHESIS_LOG" in os.environ:
        said = f"make fuzz EXAMPLES={EXAMPLES}\n\n{done.stdout.replace(str(tmp_path), '.')}"
        Path(os.environ["SNC_SCHEMATHESIS_LOG"]).write_text(said)
    assert done.returncode == 0, done.stdout[-8_000:]
    tested, generated = (re.search(rf"{what}", done.stdout) for what in
                         (r"Tested: (\d+)", r"(\d+) generated"))  # fmt: skip
    assert int(tested[1]) >= 40
    assert int(generated[1]) >= 1_000
