"""Runs the tests of the page's modules that need no document: modules.test.mjs, by Node."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node: apt-get install nodejs")
def test_the_modules_without_a_document_pass_their_own_tests():
    done = subprocess.run(
        ["node", "--test", "modules.test.mjs"], cwd=HERE, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"pass (\d+)", done.stdout)
    assert passed, done.stdout
    written = (HERE / "modules.test.mjs").read_text().count("\ntest(")
    assert int(passed[1]) == written, "every test in the file has run"
