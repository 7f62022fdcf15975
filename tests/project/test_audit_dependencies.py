"""Known vulnerabilities: what pip-audit says becomes one plain sentence and an exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox import ROOT

SCRIPT = ROOT / ".ci" / "audit_dependencies.py"
# As pip-audit 2.10 writes them.
CLEAN = {"name": "httpx", "version": "0.28.1", "vulns": []}
BROKEN = {
    "name": "torch",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-2025-41", "fix_versions": ["2.6.0"], "aliases": [], "description": ""}],
}
OURS = {"name": "spectral-norm-constraint", "skip_reason": "distribution marked as editable"}
ABSENT = {
    "name": "numpy",
    "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2.4.6)",
}


def audited(tmp_path: Path, said: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the script over a program that says what pip-audit would say."""
    program = tmp_path / "pip-audit"
    (tmp_path / "said").write_text(said)
    (tmp_path / "asked").unlink(missing_ok=True)
    program.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/asked\ncat {tmp_path}/said\n'
        f"echo 'ERROR: no route to host' >&2\nexit {status}\n"
    )
    program.chmod(0o755)
    command = [sys.executable, str(SCRIPT), str(program), "/some/folder"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "--path /some/folder " in (tmp_path / "asked").read_text()
    return done


def listed(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_nothing_known_is_a_clean_bill(tmp_path):
    done = audited(tmp_path, listed(CLEAN, OURS))
    assert (done.returncode, done.stdout) == (0, "No known vulnerability in 1 packages.\n")


def test_what_is_known_is_named_with_its_cure(tmp_path):
    done = audited(tmp_path, listed(CLEAN, BROKEN, ABSENT), status=1)
    assert done.returncode == 1
    assert done.stdout == "torch 1.0: PYSEC-2025-41, fixed in 2.6.0\n"
    assert "1 known vulnerabilities" in done.stderr


@pytest.mark.parametrize("packages", [(ABSENT, CLEAN), (ABSENT,), (OURS,), ()])
def test_what_could_not_be_looked_up_is_no_clean_bill(tmp_path, packages):
    """Without a network pip-audit itself ends with 0: everything is skipped."""
    done = audited(tmp_path, listed(*packages))
    assert done.returncode == 2
    assert "no clean bill" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("said", ["", "Traceback", "[]", "{}"])
def test_a_failure_is_one_sentence_that_tells_the_reason(tmp_path, said):
    done = audited(tmp_path, said, status=1)
    assert done.returncode == 2
    assert done.stderr == ("The vulnerabilities could not be looked up: ERROR: no route to host\n")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing: apt-get install make")
def test_make_has_the_command(tmp_path):
    env = {"PATH": os.environ["PATH"]}
    command = ["make", "--dry-run", "--always-make", "audit-dependencies", "fuzz"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python .ci/{SCRIPT.name} .venv/audit/bin/pip-audit" in done.stdout
    assert "SNC_SCHEMATHESIS_EXAMPLES=100" in done.stdout
